#include "cpu/amx/tiles.h"
#include "ops/slots.h"
namespace fastnn::cpu::FASTNN_ISA {
void fill_conv_backward_weight(Slots&) {}
}
