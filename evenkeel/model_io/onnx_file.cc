#include "evenkeel/model_io/onnx_file.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <filesystem>
#include <limits>
#include <set>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/atomic_file.h"
#include "onnx.pb.h"

namespace evenkeel::onnx {
namespace {

namespace fs = std::filesystem;
// The schema of Debian's libonnx-dev under a package of our own: a program that links libonnx as well has no name twice.
namespace proto = evenkeel_onnx;
using proto::AttributeProto;
using proto::GraphProto;
using proto::ModelProto;
using proto::NodeProto;
using proto::TensorProto;
using proto::ValueInfoProto;
using Tensors = google::protobuf::RepeatedPtrField<TensorProto>;

constexpr size_t kProtobufLimit = std::numeric_limits<int32_t>::max();

// The message as it was read. The main graph's tensors stand apart, so that the rest can be copied without them.
struct Original {
  ModelProto model;
  Tensors tensors;
};

// What every step of reading needs to know.
struct Reading {
  std::string name;  // of the file, for messages
  std::string folder = {};
  std::shared_ptr<const Original> owner = {};
  std::map<std::string, Bytes> external = {};  // whole files, each read once
};

[[noreturn]] void fail(const Reading& r, const std::string& message) {
  throw FormatError(fmt::format("'{}': {}", r.name, message));
}

// --- tensors ----------------------------------------------------------------------------------------------------------
template <class To, class List>
Bytes narrowed(const List& list) {
  std::vector<To> values;
  values.reserve(static_cast<size_t>(list.size()));
  for (const auto v : list) values.push_back(static_cast<To>(v));
  return Bytes::copy_of(std::as_bytes(std::span<const To>(values)));
}

// The typed list that goes with the element type; ONNX keeps narrow types in the list of int32, half precision as its bits.
Bytes typed_data(const TensorProto& t) {
  switch (static_cast<ElementType>(t.data_type())) {
    case ElementType::kFloat:
      return narrowed<float>(t.float_data());
    case ElementType::kDouble:
      return narrowed<double>(t.double_data());
    case ElementType::kInt64:
      return narrowed<int64_t>(t.int64_data());
    case ElementType::kUint64:
      return narrowed<uint64_t>(t.uint64_data());
    case ElementType::kUint32:
      return narrowed<uint32_t>(t.uint64_data());
    case ElementType::kInt32:
      return narrowed<int32_t>(t.int32_data());
    case ElementType::kUint16:
    case ElementType::kFloat16:
    case ElementType::kBfloat16:
      return narrowed<uint16_t>(t.int32_data());
    case ElementType::kInt16:
      return narrowed<int16_t>(t.int32_data());
    case ElementType::kInt8:
      return narrowed<int8_t>(t.int32_data());
    case ElementType::kUint8:
    case ElementType::kBool:
      return narrowed<uint8_t>(t.int32_data());
    case ElementType::kString:
    case ElementType::kUndefined:
      break;
  }
  return {};
}

// The file of an external tensor: inside the model's folder, whatever links say.
const Bytes& external_file(Reading& r, const std::string& tensor, const std::string& location) {
  if (r.folder.empty())
    fail(r, fmt::format("tensor '{}' is kept in another file, '{}', which is not to be had here", tensor, location));
  const auto known = r.external.find(location);
  if (known != r.external.end()) return known->second;
  const fs::path relative(location);
  const bool climbs = std::find(relative.begin(), relative.end(), "..") != relative.end();
  if (location.empty() || relative.is_absolute() || climbs) {
    fail(r, fmt::format("tensor '{}' is kept in '{}'; expected a file in the model's own folder", tensor, location));
  }
  std::error_code error;
  const fs::path folder = fs::canonical(r.folder, error);
  const fs::path file = fs::weakly_canonical(folder / relative, error);
  const auto [end, ignored] = std::mismatch(folder.begin(), folder.end(), file.begin(), file.end());
  if (end != folder.end()) {
    fail(r, fmt::format("tensor '{}' is kept in '{}', a link out of the model's folder; expected a file in it", tensor,
                        location));
  }
  if (!fs::is_regular_file(file, error)) {
    fail(r,
         fmt::format("tensor '{}' is kept in '{}', which is not there; it belongs beside the model", tensor, location));
  }
  auto bytes = std::make_shared<std::vector<std::byte>>(read_file(file.string()));
  const std::span<const std::byte> view(*bytes);
  return r.external[location] = Bytes(std::move(bytes), view);
}

uint64_t number_in(const Reading& r, const TensorProto& t, const std::string& key, const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    fail(r, fmt::format("tensor '{}': external {}: expected a number, found '{}'", t.name(), key, text));
  }
  return value;
}

Bytes external_data(Reading& r, const TensorProto& t, uint64_t bytes_needed) {
  std::string location;
  uint64_t offset = 0;
  std::optional<uint64_t> length;
  for (const auto& entry : t.external_data()) {
    if (entry.key() == "location") location = entry.value();
    if (entry.key() == "offset") offset = number_in(r, t, entry.key(), entry.value());
    if (entry.key() == "length") length = number_in(r, t, entry.key(), entry.value());
  }
  const Bytes& file = external_file(r, t.name(), location);
  if (offset > file.size() || length.value_or(bytes_needed) > file.size() - offset) {
    fail(r, fmt::format("tensor '{}' lies at bytes {} to {} of '{}', which has {}", t.name(), offset,
                        offset + length.value_or(bytes_needed), location, file.size()));
  }
  const size_t size = static_cast<size_t>(length.value_or(bytes_needed));
  return {std::make_shared<Bytes>(file), file.view().subspan(static_cast<size_t>(offset), size)};
}

Shape dims_of(const Reading& r, const TensorProto& t) {
  Shape dims(t.dims().begin(), t.dims().end());
  uint64_t count = 1;
  for (const int64_t d : dims) {
    if (d < 0) fail(r, fmt::format("tensor '{}': expected extents of at least 0, found {}", t.name(), d));
  }
  for (const int64_t d : dims) {
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(d), &count) || count > (uint64_t{1} << 60)) {
      fail(r,
           fmt::format("tensor '{}': its shape {} has more elements than can be counted", t.name(), to_string(dims)));
    }
  }
  return dims;
}

TensorValue tensor_of(Reading& r, const TensorProto& t, int64_t origin) {
  TensorValue tensor;
  tensor.name = t.name();
  tensor.type = static_cast<ElementType>(t.data_type());
  tensor.dims = dims_of(r, t);
  tensor.origin = origin;
  const size_t width = size_bytes(tensor.type);
  if (t.has_segment())
    fail(r, fmt::format("tensor '{}' is a segment of another one; whole tensors are read", t.name()));
  if (width == 0) return tensor;  // strings, kinds of other people: carried
  const uint64_t expected = static_cast<uint64_t>(tensor.count()) * width;
  if (t.data_location() == TensorProto::EXTERNAL) {
    tensor.data = external_data(r, t, expected);
  } else if (t.has_raw_data()) {
    const std::string& raw = t.raw_data();
    tensor.data = Bytes(r.owner, std::as_bytes(std::span(raw.data(), raw.size())));
  } else {
    tensor.data = typed_data(t);
  }
  if (tensor.data.size() != expected) {
    fail(r, fmt::format("tensor '{}' of shape {} and {}: expected {} bytes, found {}", t.name(), to_string(tensor.dims),
                        name_of(tensor.type), expected, tensor.data.size()));
  }
  return tensor;
}

// --- graphs, read -----------------------------------------------------------------------------------------------------
Graph graph_of(Reading& r, const GraphProto& g, const Tensors& tensors);

// Files older than IR 4 may leave the kind out; then the field that is there tells.
AttributeProto::AttributeType kind_of(const AttributeProto& a) {
  if (a.type() != AttributeProto::UNDEFINED) return a.type();
  if (a.has_f()) return AttributeProto::FLOAT;
  if (a.has_i()) return AttributeProto::INT;
  if (a.has_s()) return AttributeProto::STRING;
  if (a.has_t()) return AttributeProto::TENSOR;
  if (a.has_g()) return AttributeProto::GRAPH;
  if (a.floats_size() > 0) return AttributeProto::FLOATS;
  if (a.ints_size() > 0) return AttributeProto::INTS;
  if (a.strings_size() > 0) return AttributeProto::STRINGS;
  return AttributeProto::UNDEFINED;
}

Attribute attribute_of(Reading& r, const AttributeProto& a) {
  Attribute attribute{.name = a.name()};
  attribute.kind = Attribute::Kind::kOther;
  if (!a.ref_attr_name().empty()) return attribute;
  switch (kind_of(a)) {
    case AttributeProto::FLOAT:
      attribute.kind = Attribute::Kind::kFloat;
      attribute.f = a.f();
      break;
    case AttributeProto::INT:
      attribute.kind = Attribute::Kind::kInt;
      attribute.i = a.i();
      break;
    case AttributeProto::STRING:
      attribute.kind = Attribute::Kind::kString;
      attribute.s = a.s();
      break;
    case AttributeProto::TENSOR:
      attribute.kind = Attribute::Kind::kTensor;
      attribute.tensor = std::make_shared<TensorValue>(tensor_of(r, a.t(), 0));
      break;
    case AttributeProto::GRAPH:
      attribute.kind = Attribute::Kind::kGraph;
      attribute.graph = std::make_shared<Graph>(graph_of(r, a.g(), a.g().initializer()));
      break;
    case AttributeProto::FLOATS:
      attribute.kind = Attribute::Kind::kFloats;
      attribute.floats.assign(a.floats().begin(), a.floats().end());
      break;
    case AttributeProto::INTS:
      attribute.kind = Attribute::Kind::kInts;
      attribute.ints.assign(a.ints().begin(), a.ints().end());
      break;
    case AttributeProto::STRINGS:
      attribute.kind = Attribute::Kind::kStrings;
      attribute.strings.assign(a.strings().begin(), a.strings().end());
      break;
    default:
      break;
  }
  return attribute;
}

std::string domain_of(const NodeProto& n) { return n.domain() == "ai.onnx" ? "" : n.domain(); }

Node node_of(Reading& r, const NodeProto& n, int64_t origin) {
  if (n.op_type().empty()) fail(r, fmt::format("node {} ('{}') names no operator", origin, n.name()));
  Node node;
  node.op_type = n.op_type();
  node.domain = domain_of(n);
  node.name = n.name();
  node.inputs.assign(n.input().begin(), n.input().end());
  node.outputs.assign(n.output().begin(), n.output().end());
  node.attributes.reserve(static_cast<size_t>(n.attribute_size()));
  for (const AttributeProto& a : n.attribute()) node.attributes.push_back(attribute_of(r, a));
  node.origin = origin;
  return node;
}

ValueInfo value_info_of(const ValueInfoProto& v, int64_t origin) {
  ValueInfo info;
  info.name = v.name();
  info.origin = origin;
  if (!v.type().has_tensor_type()) return info;
  const auto& type = v.type().tensor_type();
  info.type = static_cast<ElementType>(type.elem_type());
  if (!type.has_shape()) return info;
  info.dims.emplace();
  for (const auto& d : type.shape().dim()) {
    Dim dim;
    if (d.has_dim_value()) dim.value = d.dim_value();
    dim.symbol = d.dim_param();
    info.dims->push_back(dim);
  }
  return info;
}

void require_unique(const Reading& r, const char* what, const std::string& name, std::set<std::string>& seen) {
  if (!seen.insert(name).second) fail(r, fmt::format("{} '{}' is there twice; each has a name of its own", what, name));
}

Graph graph_of(Reading& r, const GraphProto& g, const Tensors& tensors) {
  Graph graph;
  graph.name = g.name();
  for (int i = 0; i < g.node_size(); ++i) graph.nodes.push_back(node_of(r, g.node(i), i));
  std::set<std::string> seen;
  for (int i = 0; i < tensors.size(); ++i) {
    graph.initializers.push_back(tensor_of(r, tensors[i], i));
    require_unique(r, "tensor", tensors[i].name(), seen);
  }
  const auto read = [&](const auto& list, std::vector<ValueInfo>& to, const char* what) {
    std::set<std::string> names;
    for (int i = 0; i < list.size(); ++i) {
      to.push_back(value_info_of(list[i], i));
      if (what != nullptr) require_unique(r, what, list[i].name(), names);
    }
  };
  read(g.input(), graph.inputs, "input");
  read(g.output(), graph.outputs, "output");
  read(g.value_info(), graph.value_infos, nullptr);
  try {
    sorted(graph);  // a cycle, or a value that is made twice: no tool could make sense of it
  } catch (const FormatError& error) {
    fail(r, error.what());
  }
  return graph;
}

// --- graphs, written --------------------------------------------------------------------------------------------------
void write_tensor(const TensorValue& tensor, TensorProto* t) {
  t->Clear();
  t->set_name(tensor.name);
  t->set_data_type(static_cast<int32_t>(tensor.type));
  for (const int64_t d : tensor.dims) t->add_dims(d);
  const auto bytes = tensor.data.view();
  t->set_raw_data(bytes.data(), bytes.size());
}

// An external tensor that is taken into the file keeps what else it says about itself.
void take_in(const TensorValue& tensor, TensorProto* t) {
  t->clear_external_data();
  t->clear_data_location();
  const auto bytes = tensor.data.view();
  t->set_raw_data(bytes.data(), bytes.size());
}

void write_attribute(const Attribute& attribute, AttributeProto* a);
void write_graph(const Graph& graph, GraphProto* g, Tensors* tensors);

void write_attribute(const Attribute& attribute, AttributeProto* a) {
  a->set_name(attribute.name);
  switch (attribute.kind) {
    case Attribute::Kind::kFloat:
      a->set_type(AttributeProto::FLOAT);
      a->set_f(attribute.f);
      break;
    case Attribute::Kind::kInt:
      a->set_type(AttributeProto::INT);
      a->set_i(attribute.i);
      break;
    case Attribute::Kind::kString:
      a->set_type(AttributeProto::STRING);
      a->set_s(attribute.s);
      break;
    case Attribute::Kind::kTensor:
      a->set_type(AttributeProto::TENSOR);
      write_tensor(*attribute.tensor, a->mutable_t());
      break;
    case Attribute::Kind::kGraph:
      a->set_type(AttributeProto::GRAPH);
      write_graph(*attribute.graph, a->mutable_g(), a->mutable_g()->mutable_initializer());
      break;
    case Attribute::Kind::kFloats:
      a->set_type(AttributeProto::FLOATS);
      a->mutable_floats()->Assign(attribute.floats.begin(), attribute.floats.end());
      break;
    case Attribute::Kind::kInts:
      a->set_type(AttributeProto::INTS);
      a->mutable_ints()->Assign(attribute.ints.begin(), attribute.ints.end());
      break;
    case Attribute::Kind::kStrings:
      a->set_type(AttributeProto::STRINGS);
      for (const std::string& s : attribute.strings) a->add_strings(s);
      break;
    case Attribute::Kind::kNone:
    case Attribute::Kind::kOther:
      break;
  }
}

// `n` is a copy of what the node was, or empty.
void write_attributes(const Node& node, NodeProto* n) {
  if (!node.attributes_changed && node.origin >= 0) {
    // Bodies may have been edited in place.
    for (AttributeProto& a : *n->mutable_attribute()) {
      const Attribute* attribute = node.find(a.name());
      if (attribute != nullptr && attribute->graph)
        write_graph(*attribute->graph, a.mutable_g(), a.mutable_g()->mutable_initializer());
    }
    return;
  }
  google::protobuf::RepeatedPtrField<AttributeProto> old;
  old.Swap(n->mutable_attribute());
  for (const Attribute& attribute : node.attributes) {
    AttributeProto* a = n->add_attribute();
    const auto before =
        std::find_if(old.begin(), old.end(), [&](const AttributeProto& o) { return o.name() == attribute.name; });
    const bool carried = attribute.kind == Attribute::Kind::kOther || attribute.kind == Attribute::Kind::kGraph;
    if (before != old.end() && carried) *a = *before;
    write_attribute(attribute, a);
  }
}

template <class List>
void write_names(const std::vector<std::string>& names, List* list) {
  if (std::equal(names.begin(), names.end(), list->begin(), list->end())) return;
  list->Clear();
  for (const std::string& name : names) *list->Add() = name;
}

void write_node(const Node& node, NodeProto* n) {
  if (n->op_type() != node.op_type) n->set_op_type(node.op_type);
  if (n->name() != node.name) n->set_name(node.name);
  if (domain_of(*n) != node.domain) n->set_domain(node.domain);
  write_names(node.inputs, n->mutable_input());
  write_names(node.outputs, n->mutable_output());
  write_attributes(node, n);
}

bool same(const ValueInfo& a, const ValueInfo& b) {
  const auto same_dim = [](const Dim& x, const Dim& y) { return x.value == y.value && x.symbol == y.symbol; };
  if (a.name != b.name || a.type != b.type || a.dims.has_value() != b.dims.has_value()) return false;
  return !a.dims || std::equal(a.dims->begin(), a.dims->end(), b.dims->begin(), b.dims->end(), same_dim);
}

void write_value_info(const ValueInfo& info, ValueInfoProto* v) {
  if (same(value_info_of(*v, 0), info)) return;
  v->set_name(info.name);
  if (info.type == ElementType::kUndefined) return;
  auto* type = v->mutable_type()->mutable_tensor_type();
  type->set_elem_type(static_cast<int32_t>(info.type));
  type->clear_shape();
  if (!info.dims) return;
  type->mutable_shape();  // a shape without extents is a scalar's
  for (const Dim& dim : *info.dims) {
    auto* d = type->mutable_shape()->add_dim();
    if (dim.value) {
      d->set_dim_value(*dim.value);
    } else if (!dim.symbol.empty()) {
      d->set_dim_param(dim.symbol);
    }
  }
}

// Assigns `list` what `values` say: those that were read keep their message, the others start empty.
template <class Message, class Value, class Write>
void write_list(const std::vector<Value>& values, google::protobuf::RepeatedPtrField<Message>* list, Write write) {
  google::protobuf::RepeatedPtrField<Message> old;
  old.Swap(list);
  list->Reserve(static_cast<int>(values.size()));
  for (const Value& value : values) {
    Message* message = list->Add();
    if (value.origin >= 0 && value.origin < old.size()) *message = old[static_cast<int>(value.origin)];
    write(value, message);
  }
}

// `tensors` is where the graph's tensors go: null when the caller writes them himself.
void write_graph(const Graph& graph, GraphProto* g, Tensors* tensors) {
  if (g->name() != graph.name) g->set_name(graph.name);
  write_list(graph.nodes, g->mutable_node(), write_node);
  write_list(graph.inputs, g->mutable_input(), write_value_info);
  write_list(graph.outputs, g->mutable_output(), write_value_info);
  write_list(graph.value_infos, g->mutable_value_info(), write_value_info);
  if (tensors == nullptr) return;
  write_list(graph.initializers, tensors, [](const TensorValue& tensor, TensorProto* t) {
    if (tensor.origin < 0) write_tensor(tensor, t);
  });
}

void write_header(const Model& model, ModelProto* m) {
  m->set_ir_version(model.ir_version);
  if (m->producer_name() != model.producer_name) m->set_producer_name(model.producer_name);
  if (m->producer_version() != model.producer_version) m->set_producer_version(model.producer_version);
  std::map<std::string, int64_t> opsets;
  for (const auto& o : m->opset_import()) opsets[o.domain() == "ai.onnx" ? "" : o.domain()] = o.version();
  if (opsets != model.opsets) {
    m->clear_opset_import();
    for (const auto& [domain, version] : model.opsets) {
      auto* o = m->add_opset_import();
      o->set_domain(domain);
      o->set_version(version);
    }
  }
  std::map<std::string, std::string> metadata;
  for (const auto& entry : m->metadata_props()) metadata[entry.key()] = entry.value();
  if (metadata == model.metadata) return;
  m->clear_metadata_props();
  for (const auto& [key, value] : model.metadata) {
    auto* entry = m->add_metadata_props();
    entry->set_key(key);
    entry->set_value(value);
  }
}

// A message as pieces of memory: large tensors are not copied, but pointed at.
class PieceStream : public google::protobuf::io::ZeroCopyOutputStream {
 public:
  bool Next(void** data, int* size) override {
    if (used_ == kBlock || blocks_.empty()) {
      blocks_.push_back(std::make_unique<std::byte[]>(kBlock));
      used_ = 0;
    }
    std::byte* first = blocks_.back().get() + used_;
    *data = first;
    *size = static_cast<int>(kBlock - used_);
    add({first, kBlock - used_});
    used_ = kBlock;
    return true;
  }
  void BackUp(int count) override {
    used_ -= static_cast<size_t>(count);
    bytes_ -= count;
    pieces_.back() = pieces_.back().first(pieces_.back().size() - static_cast<size_t>(count));
  }
  int64_t ByteCount() const override { return bytes_; }
  bool AllowsAliasing() const override { return true; }
  bool WriteAliasedRaw(const void* data, int size) override {
    add({static_cast<const std::byte*>(data), static_cast<size_t>(size)});
    return true;
  }
  std::span<const std::span<const std::byte>> pieces() const { return pieces_; }

 private:
  static constexpr size_t kBlock = size_t{1} << 16;
  void add(std::span<const std::byte> piece) {
    pieces_.push_back(piece);
    bytes_ += static_cast<int64_t>(piece.size());
  }
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
  size_t used_ = 0;  // of the last block
  std::vector<std::span<const std::byte>> pieces_;
  int64_t bytes_ = 0;
};

// A message that has the content of a tensor for a while: the string changes places, its memory stays where it is.
class Loan {
 public:
  Loan(const TensorValue& tensor, TensorProto* message) : text_(tensor.data.text()), message_(message) {
    TensorValue header = tensor;
    header.data = {};
    write_tensor(header, message);
    message->mutable_raw_data()->swap(*text_);
  }
  ~Loan() {
    if (text_) message_->mutable_raw_data()->swap(*text_);
  }
  Loan(Loan&&) = default;
  Loan& operator=(Loan&&) = delete;

  // Short strings live in the object itself, which does move; and a second tensor of the same content finds the string lent.
  static bool is_possible(const TensorValue& tensor) {
    constexpr size_t kLeast = 1024;
    return tensor.data.text() && tensor.data.size() >= kLeast && tensor.data.text()->size() == tensor.data.size();
  }

 private:
  std::shared_ptr<std::string> text_;
  TensorProto* message_;
};

// Calls write(pieces of the file). keep_external: tensors that lie in other files of this folder stay there.
template <class Write>
void serialize_to(const Model& model, bool keep_external, Write write) {
  const auto* original = static_cast<const Original*>(model.original.get());
  ModelProto m;
  if (original != nullptr) m = original->model;
  write_header(model, &m);
  write_graph(model.graph, m.mutable_graph(), nullptr);
  // Tensors are lent to the message, not copied: they are most of the bytes.
  Tensors* list = m.mutable_graph()->mutable_initializer();
  std::vector<std::unique_ptr<TensorProto>> made;
  std::vector<Loan> loans;
  // The message must not delete what it does not own, however this ends.
  struct Emptying {
    Tensors* list;
    ~Emptying() {
      while (!list->empty()) list->UnsafeArenaReleaseLast();
    }
  } emptying{list};
  for (const TensorValue& tensor : model.graph.initializers) {
    const bool untouched = original != nullptr && tensor.origin >= 0 && tensor.origin < original->tensors.size();
    const TensorProto* before = untouched ? &original->tensors[static_cast<int>(tensor.origin)] : nullptr;
    const bool outside = before != nullptr && before->data_location() == TensorProto::EXTERNAL;
    if (before != nullptr && (!outside || keep_external)) {
      list->UnsafeArenaAddAllocated(const_cast<TensorProto*>(before));
      continue;
    }
    made.push_back(before != nullptr ? std::make_unique<TensorProto>(*before) : std::make_unique<TensorProto>());
    TensorProto* t = made.back().get();
    if (before != nullptr) {
      take_in(tensor, t);
    } else if (Loan::is_possible(tensor)) {
      loans.emplace_back(tensor, t);
    } else {
      write_tensor(tensor, t);
    }
    list->UnsafeArenaAddAllocated(t);
  }
  const size_t size = m.ByteSizeLong();
  if (size > kProtobufLimit) {
    throw UsageError(
        fmt::format("the model would take {} bytes in one file; ONNX files hold at most {}", size, kProtobufLimit));
  }
  PieceStream stream;
  {
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.EnableAliasing(true);
    m.SerializeWithCachedSizes(&coded);
  }
  EK_ASSERT(stream.ByteCount() == static_cast<int64_t>(size));
  write(stream.pieces());
}

}  // namespace

namespace {

// Nodes that call a function of the file, in the graph and its bodies; the functions by domain and name.
using FunctionNames = std::set<std::pair<std::string, std::string>>;
void add_calls(const GraphProto& g, const FunctionNames& functions, std::vector<std::string>& calls) {
  for (const NodeProto& n : g.node()) {
    const bool is_new = std::find(calls.begin(), calls.end(), n.op_type()) == calls.end();
    if (is_new && functions.contains({domain_of(n), n.op_type()})) calls.push_back(n.op_type());
    for (const AttributeProto& a : n.attribute()) {
      if (a.has_g()) add_calls(a.g(), functions, calls);
    }
  }
}

// What is inside of a function would be missed: norms that are not listed, weights that are not compared.
void require_no_calls(const Reading& r, const ModelProto& m) {
  FunctionNames functions;
  for (const auto& f : m.functions()) functions.emplace(f.domain() == "ai.onnx" ? "" : f.domain(), f.name());
  std::vector<std::string> calls;
  if (!functions.empty()) add_calls(m.graph(), functions, calls);
  if (calls.empty()) return;
  throw BackendError(fmt::format(
      "'{}': its graph calls functions that the file itself defines ('{}'{}), and what is inside of them is not read; "
      "export without export_modules_as_functions, or inline them first (onnx.inliner.inline_local_functions)",
      r.name, calls[0],
      calls.size() < 2    ? ""
      : calls.size() == 2 ? fmt::format(" and '{}'", calls[1])
                          : fmt::format(", '{}' and {} more", calls[1], calls.size() - 2)));
}

// parse(ModelProto&): false where the bytes are none.
template <class Parse>
Model model_from(const std::string& name, const std::string& folder, size_t size, Parse parse) {
  Reading r{.name = name, .folder = folder};
  auto original = std::make_shared<Original>();
  if (size > kProtobufLimit) fail(r, fmt::format("{} bytes; ONNX files hold at most {}", size, kProtobufLimit));
  if (!parse(original->model))
    fail(r, "expected an ONNX model, found bytes that are none (or a part of one: the file may be cut short)");
  if (!original->model.has_graph() || original->model.ir_version() < 1) {
    fail(r, "expected an ONNX model with a graph and an IR version, found neither; is it another kind of file?");
  }
  require_no_calls(r, original->model);
  original->tensors.Swap(original->model.mutable_graph()->mutable_initializer());
  r.owner = original;

  const ModelProto& m = original->model;
  Model model;
  model.ir_version = m.ir_version();
  for (const auto& o : m.opset_import()) model.opsets[o.domain() == "ai.onnx" ? "" : o.domain()] = o.version();
  model.producer_name = m.producer_name();
  model.producer_version = m.producer_version();
  for (const auto& entry : m.metadata_props()) model.metadata[entry.key()] = entry.value();
  model.graph = graph_of(r, m.graph(), original->tensors);
  model.original = original;
  model.folder = folder;
  return model;
}

// A file in pieces: what is read goes into the tensors at once, and the whole is never in memory twice.
class FileStream : public google::protobuf::io::ZeroCopyInputStream {
 public:
  explicit FileStream(FileReader& file) : file_(file), block_(size_t{1} << 20) {}
  bool Next(const void** data, int* size) override {
    if (kept_ == 0) {
      try {
        filled_ = kept_ = file_.read(block_);
      } catch (const std::exception&) {  // not through protobuf's code
        error_ = std::current_exception();
      }
      if (kept_ == 0) return false;
    }
    *data = block_.data() + (filled_ - kept_);
    *size = static_cast<int>(kept_);
    count_ += static_cast<int64_t>(kept_);
    kept_ = 0;
    return true;
  }
  void BackUp(int count) override {
    kept_ = static_cast<size_t>(count);
    count_ -= count;
  }
  bool Skip(int count) override {
    const void* data = nullptr;
    int size = 0;
    while (count > 0 && Next(&data, &size)) {
      if (size > count) BackUp(size - count);
      count -= std::min(count, size);
    }
    return count == 0;
  }
  int64_t ByteCount() const override { return count_; }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  FileReader& file_;
  std::vector<std::byte> block_;
  size_t filled_ = 0, kept_ = 0;  // bytes in the block, and those at its end that were not taken
  int64_t count_ = 0;
  std::exception_ptr error_;
};

}  // namespace

Model parse(std::string_view bytes, const std::string& name, const std::string& folder) {
  return model_from(name, folder, bytes.size(), [&](ModelProto& model) {
    return model.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  });
}

Model load(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string(), folder = parent.empty() ? "." : parent;
  FileReader file(path);
  if (file.size() == 0) {  // a pipe, or nothing
    std::string bytes;
    std::vector<std::byte> block(size_t{1} << 16);
    while (const size_t got = file.read(block)) bytes.append(reinterpret_cast<const char*>(block.data()), got);
    return parse(bytes, path, folder);
  }
  FileStream stream(file);
  return model_from(path, folder, file.size(), [&](ModelProto& model) {
    // Bounded: a length in the file that is beyond its end allocates nothing.
    const bool parsed = model.ParseFromBoundedZeroCopyStream(&stream, static_cast<int>(file.size()));
    stream.rethrow();
    return parsed;
  });
}

std::string serialize(const Model& model) {
  std::string text;
  serialize_to(model, true, [&](std::span<const std::span<const std::byte>> pieces) {
    for (const auto& piece : pieces) text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  });
  return text;
}

void save(const std::string& path, const Model& model) {
  std::error_code error;
  const fs::path parent = fs::path(path).parent_path();
  const bool same_folder = !model.folder.empty() && fs::equivalent(parent.empty() ? "." : parent, model.folder, error);
  serialize_to(model, same_folder,
               [&](std::span<const std::span<const std::byte>> pieces) { write_file_atomically(path, pieces); });
}

TensorValue parse_tensor(std::string_view bytes, const std::string& name) {
  struct Owner {
    TensorProto tensor;
  };
  auto owner = std::make_shared<Owner>();
  Reading r{.name = name};
  if (bytes.size() > kProtobufLimit || !owner->tensor.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    fail(r, "expected an ONNX tensor, found bytes that are none");
  }
  TensorValue tensor = tensor_of(r, owner->tensor, -1);
  tensor.data = Bytes::copy_of(tensor.data.view());
  return tensor;
}

}  // namespace evenkeel::onnx
