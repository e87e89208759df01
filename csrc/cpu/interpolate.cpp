#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_interpolate(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
