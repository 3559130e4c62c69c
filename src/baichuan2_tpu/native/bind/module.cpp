// The Python module baichuan2_tpu._native: see _native.pyi for what it offers.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "bind/bindings.h"
#include "measure.h"

namespace nb = nanobind;

NB_MODULE(_native, module) {
    using namespace nb::literals;
#ifdef NDEBUG
    // At the end of the interpreter a daemon thread of any program may still hold a model, which is no fault.
    nb::set_leak_warnings(false);
#endif
    module.doc() = "Native kernels of baichuan2-tpu.";
    baichuan2::bind_quantize(module);
    baichuan2::bind_model(module);
    baichuan2::bind_kernels(module);
    baichuan2::bind_threads(module);
    const auto release = nb::call_guard<nb::gil_scoped_release>();
    module.def("measure_read_bandwidth", &baichuan2::measure_read_bandwidth, "threads"_a, release);
    module.def("measure_multiply_peak", &baichuan2::measure_multiply_peak, "threads"_a, "bits"_a,
               "kernels"_a = "", release);
}
