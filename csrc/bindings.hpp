// Parts of the Python module that have a file of their own.
#pragma once

#include <pybind11/pybind11.h>

void bind_haplotypes(pybind11::module_& m);
