// Draws the charts of a page from the JSON in it. A chart exists only while it is near the screen: a hundred canvases would be more than a phone
// has memory for.
(() => {
  'use strict';
  const charts = JSON.parse(document.getElementById('charts').textContent);
  const boxes = [...document.querySelectorAll('.box')];
  const drawn = new Map();   // box -> Chart
  const hidden = new Map();  // box -> names of series that were clicked away

  Chart.defaults.animation = false;
  Chart.defaults.responsive = true;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.locale = 'en';

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const mix = (a, b, share) => '#' + [1, 3, 5].map((i) => Math.round(
      parseInt(a.slice(i, i + 2), 16) * (1 - share) + parseInt(b.slice(i, i + 2), 16) * share).toString(16).padStart(2, '0')).join('');

  function coloursOf(count) {
    const series = css('--series').split(' '), ramp = css('--ramp').split(' ');
    return Array.from({length: count}, (_, i) => {
      if (count <= series.length) return series[i];
      const at = i / (count - 1) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
      return mix(ramp[low], ramp[low + 1], at - low);
    });
  }

  const value = (v) => v === null ? NaN : v;
  const shown = (v) => Number.isFinite(v) ? String(Number(v.toPrecision(6))) : 'none';

  // A point whose neighbours are gaps would not be seen as part of a line.
  function radiiOf(y) {
    const few = y.length <= 30;
    return y.map((v, i) => few ? 2.5 : v !== null && (y[i - 1] ?? null) === null && (y[i + 1] ?? null) === null ? 2 : 0);
  }

  function datasetsOf(spec, colours) {
    const out = [];
    spec.series.forEach((s, i) => {
      const colour = colours[i];
      const points = (list) => list.map((v, j) => ({x: s.x[j], y: value(v)}));
      const common = {label: s.name, borderColor: colour, backgroundColor: colour, series: i};
      if (spec.kind === 'bar') {
        const at = new Map(s.x.map((x, j) => [x, j]));
        const of = (list) => spec.categories.map((_, c) => at.has(c) ? list[at.get(c)] : null);
        out.push({...common, data: of(s.y), whiskers: s.low && [of(s.low), of(s.high)]});
        return;
      }
      if (spec.kind === 'scatter') {
        out.push({...common, data: points(s.y), pointRadius: 3, showLine: false, whiskers: s.low && [s.low, s.high]});
        return;
      }
      if (s.low) {
        const edge = {...common, band: true, borderWidth: 0, pointRadius: 0, pointHitRadius: 0, backgroundColor: colour + '2e'};
        out.push({...edge, data: points(s.high), fill: '+1'}, {...edge, data: points(s.low), fill: false});
      }
      out.push({...common, data: points(s.y), borderWidth: 1.5, borderDash: s.dashed ? [5, 4] : [], pointRadius: radiiOf(s.y),
                fill: false, low: s.low, high: s.high});
    });
    return out;
  }

  // The spread of bars and points.
  const whiskers = {
    id: 'whiskers',
    afterDatasetsDraw(chart) {
      const across = chart.options.indexAxis === 'y', scale = chart.scales[across ? 'x' : 'y'], ctx = chart.ctx;
      chart.data.datasets.forEach((dataset, i) => {
        if (!dataset.whiskers || !chart.isDatasetVisible(i)) return;
        ctx.save();
        ctx.strokeStyle = css('--text');
        chart.getDatasetMeta(i).data.forEach((element, j) => {
          const [low, high] = dataset.whiskers.map((list) => value(list[j] ?? null)).map((v) => scale.getPixelForValue(v));
          if (!Number.isFinite(low) || !Number.isFinite(high)) return;
          ctx.beginPath();
          if (across) {
            ctx.moveTo(low, element.y);
            ctx.lineTo(high, element.y);
          } else {
            ctx.moveTo(element.x, low);
            ctx.lineTo(element.x, high);
          }
          ctx.stroke();
        });
        ctx.restore();
      });
    },
  };

  // On a logarithmic axis: powers of ten, and 2 and 5 of each where there are few of them.
  function powerOfTen(v, _, all) {
    const decades = Math.log10(all[all.length - 1].value / all[0].value);
    const first = Math.round(v / 10 ** Math.floor(Math.log10(v) + 1e-9));
    if (first !== 1 && !(decades < 3 && (first === 2 || first === 5))) return '';
    return v < 1e-3 || v >= 1e5 ? v.toExponential(0) : shown(v);
  }

  function axis(title, logarithmic, colours) {
    const ticks = {color: colours.faint, maxRotation: 50};
    if (logarithmic) ticks.callback = powerOfTen;
    return {type: logarithmic ? 'logarithmic' : 'linear', title: {display: title !== '', text: title, color: colours.faint},
            grid: {color: colours.line, borderColor: colours.line}, ticks};
  }

  function optionsOf(spec, across) {
    const colours = {faint: css('--faint'), line: css('--line')};
    const x = axis(spec.x_label, spec.log_x, colours), y = axis(spec.y_label, spec.log_y, colours);
    const spread = spec.series.flatMap((s) => s.low ? [...s.low, ...s.high] : []).filter((v) => v !== null);
    if (spread.length > 0) {
      y.suggestedMin = Math.min(...spread);
      y.suggestedMax = Math.max(...spread);
    }
    const bars = spec.kind === 'bar';
    if (!spec.log_x && spec.series.every((s) => s.x.every(Number.isInteger))) x.ticks.precision = 0;  // no half epochs
    if (bars) x.type = 'category';
    if (bars && across) x.ticks.autoSkip = false;
    return {
      indexAxis: across ? 'y' : 'x',
      parsing: bars ? undefined : false,
      scales: across ? {x: y, y: x} : {x, y},
      interaction: bars ? {mode: 'index', intersect: false, axis: across ? 'y' : 'x'} : {mode: 'nearest', intersect: false, axis: 'x'},
      plugins: {
        legend: {display: false},
        tooltip: {
          filter: (item) => !item.dataset.band,
          callbacks: {
            title: (items) => items.length === 0 ? '' : bars ? items[0].label : `${spec.x_label} ${shown(items[0].parsed.x)}`.trim(),
            label: (item) => {
              const d = item.dataset, i = item.dataIndex, of = (list) => shown(value(list[i] ?? null));
              const spreadOf = d.low ? [d.low, d.high] : d.whiskers;
              const text = `${d.label}: ${shown(across ? item.parsed.x : item.parsed.y)}`;
              return spreadOf ? `${text} (${of(spreadOf[0])} to ${of(spreadOf[1])})` : text;
            },
          },
        },
      },
    };
  }

  function showLegend(box, spec, colours) {
    const legend = box.parentElement.querySelector('.legend');
    legend.replaceChildren();
    if (spec.series.length < 2) return;
    const off = hidden.get(box) ?? new Set();
    hidden.set(box, off);
    spec.series.forEach((s, i) => {
      const button = document.createElement('button'), mark = document.createElement('i');
      button.type = 'button';
      mark.style.borderColor = colours[i];
      mark.style.borderTopStyle = s.dashed ? 'dashed' : 'solid';
      button.append(mark, s.name);
      button.setAttribute('aria-pressed', String(!off.has(i)));
      button.onclick = () => {
        if (!off.delete(i)) off.add(i);
        button.setAttribute('aria-pressed', String(!off.has(i)));
        const chart = drawn.get(box);
        if (!chart) return;
        chart.data.datasets.forEach((d, j) => chart.setDatasetVisibility(j, !off.has(d.series)));
        chart.update();
      };
      legend.append(button);
    });
  }

  function draw(box) {
    drawn.get(box)?.destroy();
    const spec = charts[Number(box.dataset.chart)];
    const colours = coloursOf(spec.series.length);
    const longest = Math.max(0, ...spec.categories.map((name) => name.length));
    const across = spec.kind === 'bar' && longest > 8 && spec.categories.length > 4;
    if (across) box.style.height = `${80 + spec.categories.length * (10 + 8 * spec.series.length)}px`;
    const chart = new Chart(box.querySelector('canvas'), {
      type: spec.kind === 'bar' ? 'bar' : 'line',
      data: {labels: spec.kind === 'bar' ? spec.categories : undefined, datasets: datasetsOf(spec, colours)},
      options: optionsOf(spec, across),
      plugins: [whiskers],
    });
    showLegend(box, spec, colours);
    const off = hidden.get(box);
    if (off && off.size > 0) {
      chart.data.datasets.forEach((d, j) => chart.setDatasetVisibility(j, !off.has(d.series)));
      chart.update();
    }
    drawn.set(box, chart);
  }

  function drop(box) {
    const chart = drawn.get(box);
    if (!chart) return;
    chart.destroy();
    drawn.delete(box);
    const canvas = box.querySelector('canvas');
    canvas.width = canvas.height = 0;
  }

  let printing = false;
  const near = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) {
      if (isIntersecting) {
        near.add(target);
        if (!drawn.has(target)) draw(target);
      } else {
        near.delete(target);
        if (!printing) drop(target);
      }
    }
  }, {rootMargin: '1500px 0px'});
  boxes.forEach((box) => watcher.observe(box));

  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => [...drawn.keys()].forEach(draw));

  // On paper all charts are drawn, in light colours.
  function print(now) {
    if (printing === now) return;
    printing = now;
    document.documentElement.classList.toggle('printed', now);
    for (const box of boxes) {
      if (now || near.has(box)) draw(box);
      else drop(box);
    }
  }
  addEventListener('beforeprint', () => print(true));
  addEventListener('afterprint', () => print(false));
  matchMedia('print').addEventListener('change', (event) => print(event.matches));
})();
