#include "ops/elementwise.h"

#include "bindings/module.h"

namespace pybind11::detail {

// An Array, or a Python bool, int or float (NumPy's numbers included).
template <>
struct type_caster<fastnn::ops::Operand> {
  PYBIND11_TYPE_CASTER(fastnn::ops::Operand, const_name("Array | bool | int | float"));

  bool load(handle source, bool convert) {
    using fastnn::ops::Operand;
    if (PyBool_Check(source.ptr())) {
      value = Operand::of(int64_t{source.ptr() == Py_True}, Operand::boolean);
    } else if (PyFloat_Check(source.ptr())) {
      value = Operand::of(PyFloat_AS_DOUBLE(source.ptr()));
    } else if (PyLong_Check(source.ptr())) {
      const int64_t whole = PyLong_AsLongLong(source.ptr());
      if (PyErr_Occurred()) throw error_already_set();
      value = Operand::of(whole);
    } else {
      make_caster<fastnn::Array> array;
      if (!array.load(source, convert)) return false;
      value = Operand(cast_op<const fastnn::Array&>(array));
    }
    return true;
  }
};

}  // namespace pybind11::detail

namespace fastnn {
namespace {

using ops::Operand;
using ops::Out;

template <class Enum>
struct Row {
  const char* name;
  Enum op;
};

constexpr Row<Arithmetic> kArithmetic[] = {
    {"mul", Arithmetic::mul},
    {"div", Arithmetic::div},
    {"pow", Arithmetic::pow},
    {"maximum", Arithmetic::maximum},
    {"minimum", Arithmetic::minimum},
    {"logical_and", Arithmetic::logical_and},
    {"logical_or", Arithmetic::logical_or},
    {"logical_xor", Arithmetic::logical_xor},
};
constexpr Row<Comparison> kComparisons[] = {
    {"eq", Comparison::eq}, {"ne", Comparison::ne}, {"lt", Comparison::lt},
    {"le", Comparison::le}, {"gt", Comparison::gt}, {"ge", Comparison::ge},
};
constexpr Row<Test> kTests[] = {
    {"isnan", Test::isnan}, {"isinf", Test::isinf}, {"isfinite", Test::isfinite}};
constexpr Row<Unary> kUnary[] = {
    {"neg", Unary::neg},       {"abs", Unary::abs},     {"sign", Unary::sign},
    {"square", Unary::square}, {"sqrt", Unary::sqrt},   {"rsqrt", Unary::rsqrt},
    {"exp", Unary::exp},       {"log", Unary::log},     {"reciprocal", Unary::reciprocal},
    {"sin", Unary::sin},       {"cos", Unary::cos},     {"floor", Unary::floor},
    {"ceil", Unary::ceil},     {"round", Unary::round},
};
constexpr Row<Gradient> kGradients[] = {
    {"abs_backward", Gradient::abs},
    {"square_backward", Gradient::square},
    {"sqrt_backward", Gradient::sqrt},
    {"rsqrt_backward", Gradient::rsqrt},
    {"reciprocal_backward", Gradient::reciprocal},
    {"sin_backward", Gradient::sin},
    {"cos_backward", Gradient::cos},
    {"div_backward_other", Gradient::div_other},
    {"pow_backward_input", Gradient::pow_input},
    {"pow_backward_exponent", Gradient::pow_exponent},
    {"maximum_backward", Gradient::larger},
    {"clamp_backward", Gradient::clamp},
    {"var_backward", Gradient::deviation},
};

}  // namespace

void bind_elementwise(py::module_& m) {
  const auto out = py::arg("out") = py::none();
  const auto zero = [](const char* name) { return py::arg(name) = 0.0; };
  // The message's name, `as_name`, is "mul_" where the call is in place.
  for (const auto& row : kArithmetic)
    def(
        m, row.name,
        [row](const Operand& x, const Operand& y, const Out& out) {
          return ops::arithmetic(out ? (std::string(row.name) + "_").c_str() : row.name, row.op, x,
                                 y, out);
        },
        py::arg("input"), py::arg("other"), out);
  def(
      m, "add",
      [](const Operand& x, const Operand& y, const Operand& alpha, const Out& out) {
        return ops::add_scaled(out ? "add_" : "add", x, y, alpha, out);
      },
      py::arg("input"), py::arg("other"), py::arg("alpha") = 1, out);
  def(
      m, "sub",
      [](const Operand& x, const Operand& y, const Operand& alpha, const Out& out) {
        const Operand minus = alpha.kind == Operand::floating ? Operand::of(-alpha.number)
                                                              : Operand::of(-alpha.whole);
        return ops::add_scaled(out ? "sub_" : "sub", x, y, minus, out);
      },
      py::arg("input"), py::arg("other"), py::arg("alpha") = 1, out);
  def(m, "clamp", &ops::clamp, py::arg("input"), py::arg("min") = py::none(),
      py::arg("max") = py::none(), out);
  for (const auto& row : kComparisons)
    def(m, row.name,
        [row](const Operand& x, const Operand& y) { return ops::compare(row.name, row.op, x, y); });
  for (const auto& row : kTests)
    def(m, row.name, [row](const Array& x) { return ops::test(row.name, row.op, x); });
  def(m, "logical_not", &ops::logical_not);
  for (const auto& row : kUnary)
    def(
        m, row.name,
        [row](const Array& x, const Out& out) {
          return ops::unary(out ? (std::string(row.name) + "_").c_str() : row.name, row.op, x, out);
        },
        py::arg("input"), out);
  def(m, "where", &ops::where);
  for (const auto& row : kGradients)
    def(
        m, row.name,
        [row](const Array& g, const Operand& x, const Operand& y, const Operand& z) {
          return ops::gradient(row.op, g, x, y, z);
        },
        py::arg("grad_output"), py::arg("x"), zero("y"), zero("z"));
}

}  // namespace fastnn
