// One function per file of bindings; module.cpp calls them.
#pragma once

#include <nanobind/nanobind.h>

namespace baichuan2 {

void bind_kernels(nanobind::module_& module);
void bind_model(nanobind::module_& module);
void bind_quantize(nanobind::module_& module);
void bind_threads(nanobind::module_& module);

}  // namespace baichuan2
