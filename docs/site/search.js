// The search of the site, without a server: MkDocs' own index, as a script, and lunr in this page. The page search.html asks it.
"use strict";

(function () {
  const kShown = 30;

  function load(name, then) {
    const script = document.createElement("script");
    script.src = base_url + "/search/" + name;
    script.onload = then;
    document.head.appendChild(script);
  }

  function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
  }

  // Some words around the first place where one of the terms stands.
  function excerpt(text, terms) {
    const lower = text.toLowerCase();
    const places = terms.map((term) => lower.indexOf(term)).filter((place) => place >= 0);
    const begin = places.length ? Math.max(0, Math.min(...places) - 60) : 0;
    return (begin > 0 ? "… " : "") + text.slice(begin, begin + 220).trim() + " …";
  }

  function show(found, documents, terms) {
    const place = document.getElementById("mkdocs-search-results");
    place.innerHTML = found.slice(0, kShown).map(function (hit) {
      const page = documents[hit.ref];
      return '<article><h3><a href="' + escaped(base_url + "/" + page.location) + '">' + escaped(page.title) + "</a></h3><p>" +
        escaped(excerpt(page.text, terms)) + "</p></article>";
    }).join("") || "<p>Nothing was found.</p>";
  }

  // Every term counts; whole words first, then their beginnings.
  function ask(index, query) {
    const terms = query.toLowerCase().split(/[\s\-_,.()`]+/).filter((term) => term.length > 1);
    const found = index.query(function (q) {
      for (const term of terms) {
        q.term(lunr.stemmer(new lunr.Token(term, {})).toString(), { boost: 10 });
        q.term(term, { wildcard: lunr.Query.wildcard.TRAILING });
      }
    });
    return { found: terms.length ? found : [], terms: terms };
  }

  function start() {
    const field = document.getElementById("mkdocs-search-query");
    if (!field) return;
    load("lunr.js", () => load("search_index.js", function () {
      const documents = evenkeel_search_index;
      const index = lunr(function () {
        this.ref("number");
        this.field("title", { boost: 20 });
        this.field("text");
        documents.forEach((page, number) => this.add({ number: number, title: page.title, text: page.text }));
      });
      function answer() {
        const { found, terms } = ask(index, field.value);
        show(found, documents, terms);
      }
      field.addEventListener("input", answer);
      field.value = new URLSearchParams(window.location.search).get("q") || "";
      if (field.value) answer();
    }));
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
