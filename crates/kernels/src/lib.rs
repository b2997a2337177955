//! Arithmetic on blocked feature maps that ONNX Runtime has no operator for, or only a chain of them.
//!
//! Between two convolutions of a Ghost network stand a depthwise convolution, a concatenation, an upsampling, a product
//! and a sum: little arithmetic, and five passes over memory. Here each of those groups is one pass. The functions take
//! and give slices in the blocked layout (N × C/b × H × W × b, `Layout` in the crate `ghostserve-ghostnet` packs weights for it); they know nothing of
//! graphs or sessions. The server wraps them into operators.
//!
//! Every function is compiled for several instruction sets and picks the widest that this processor has.

mod excite;
mod ghost;
mod lanes;
mod layout;
mod strips;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use excite::{SqueezeExcite, squeeze_excite};
pub use ghost::{Gate, Ghost, gate, ghost};
pub use layout::{reblock, unblock};
pub use strips::{GateKind, Strips, strips};

use lanes::Lanes;

/// Operands whose sizes do not fit each other.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: expected {expected}, found {found}")]
pub struct KernelError {
    what: &'static str,
    expected: usize,
    found: usize,
}

/// Fails unless `found` is `expected`.
fn check(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found { Ok(()) } else { Err(KernelError { what, expected, found }) }
}

/// Channels a block in the layout that ONNX Runtime's convolutions use on this processor; none if they use none.
#[must_use]
pub fn native_block() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some(16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(8);
        }
    }
    None
}

/// Height and width of a map, pixels.
pub type Pixels = [usize; 2];

/// Makes the public function `$name`: it picks the instruction set, then calls `$body`, which is generic over the lanes
/// and is inlined into a function that may use the instructions.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident => $body:ident($($argument:ident: $type:ty),*)) => {
        $(#[$doc])*
        pub fn $name(block: usize, $($argument: $type),*) -> Result<(), $crate::KernelError> {
            #[allow(unused_imports)]
            use $crate::lanes;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) -> Result<(), $crate::KernelError> {
                    $body::<16, lanes::x86::Zmm>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) -> Result<(), $crate::KernelError> {
                    $body::<8, lanes::x86::Ymm>($($argument),*)
                }
                if block == 16 && is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has the instructions.
                    #[allow(unsafe_code)]
                    return unsafe { avx512($($argument),*) };
                }
                if block == 8 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the instructions.
                    #[allow(unsafe_code)]
                    return unsafe { avx2($($argument),*) };
                }
            }
            match block {
                8 => $body::<8, lanes::Portable<8>>($($argument),*),
                16 => $body::<16, lanes::Portable<16>>($($argument),*),
                _ => $crate::check("channels a block", 16, block),
            }
        }
    };
}
use kernel;
