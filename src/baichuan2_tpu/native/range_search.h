// Asymmetric group quantisation with a search for the range of least squared error.
#pragma once

#include <nanobind/nanobind.h>

namespace baichuan2 {

void bind_range_search(nanobind::module_& module);

}  // namespace baichuan2
