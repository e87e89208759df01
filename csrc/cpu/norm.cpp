#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_norm(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
