// The Python module baichuan2_tpu._native: bindings only, each beside the code it binds.
#include <nanobind/nanobind.h>

#include "range_search.h"

NB_MODULE(_native, module) {
    module.doc() = "Native kernels of baichuan2-tpu.";
    baichuan2::bind_range_search(module);
}
