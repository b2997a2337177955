//! A block of channels as one value: a vector register where the processor has one of that size.
//!
//! Loops over arrays are not enough: compilers turn some of them into vector instructions and others into gathers that
//! are slower than scalars, and which loop becomes what changes from version to version.

/// `B` values side by side, and the arithmetic that kernels need.
pub(super) trait Lanes<const B: usize>: Copy {
    fn load(from: &[f32; B]) -> Self;
    fn store(self, to: &mut [f32; B]);
    fn splat(value: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    /// `self · factor + sum`.
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
    fn divide(self, by: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// 2ⁿ, given n + 1.5 · 2²³ (whose low bits hold n).
    fn power_of_two(rounded: Self) -> Self;

    /// The sum of the lanes.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut values = [0.0; B];
        self.store(&mut values);
        let mut total = 0.0;
        for value in values {
            total += value;
        }
        total
    }

    /// `clip(x / 6 + 1/2, 0, 1)`.
    #[inline(always)]
    fn hard_sigmoid(self) -> Self {
        self.multiply_add(Self::splat(1.0 / 6.0), Self::splat(0.5)).clip()
    }

    /// `clip(x, 0, 1)`.
    #[inline(always)]
    fn clip(self) -> Self {
        self.max(Self::splat(0.0)).min(Self::splat(1.0))
    }

    /// `1 / (1 + exp(-x))` to about one unit in the last place.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        // Beyond these limits the result is 0 or 1 anyway; within them the exponent below stays in range.
        let x = self.multiply(Self::splat(-1.0)).max(Self::splat(-87.0)).min(Self::splat(87.0));
        // exp(x) = 2^n · exp(r) with |r| ≤ ln 2 / 2; adding 1.5 · 2^23 rounds to the nearest integer.
        const ROUND: f32 = 12_582_912.0;
        let rounded = x.multiply_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(ROUND));
        let n = rounded.add(Self::splat(-ROUND));
        // ln 2 in two parts, the first with trailing zeros so that its product with n is exact.
        let r = n.multiply_add(Self::splat(-0.693_359_4), x);
        let r = n.multiply_add(Self::splat(2.121_944_4e-4), r);
        // Taylor's series; the first omitted term is r^8 / 8! < 6e-9.
        let mut exp = Self::splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            exp = exp.multiply_add(r, Self::splat(coefficient));
        }
        let one = Self::splat(1.0);
        one.divide(exp.multiply_add(Self::power_of_two(rounded), one))
    }
}

/// Zeroed memory that starts at a cache line: access to a block that lies in two lines costs twice as much.
pub(super) struct Scratch {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// Allocates `blocks` blocks of `B` values.
    pub(super) fn zeros<const B: usize>(blocks: usize) -> Self {
        let len = blocks * B;
        let memory = vec![0.0; len + Self::LINE / size_of::<f32>()];
        let start = memory.as_ptr().align_offset(Self::LINE).min(Self::LINE / size_of::<f32>());
        Self { memory, start, len }
    }

    /// The memory as blocks of `B` values.
    pub(super) fn blocks<const B: usize>(&mut self) -> &mut [[f32; B]] {
        self.memory[self.start..][..self.len].as_chunks_mut().0
    }
}

/// Lanes in an array, for processors without registers of that size. The compiler may still use vector instructions.
#[derive(Clone, Copy)]
pub(super) struct Portable<const B: usize>([f32; B]);

impl<const B: usize> Portable<B> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }
}

impl<const B: usize> Lanes<B> for Portable<B> {
    #[inline(always)]
    fn load(from: &[f32; B]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; B]) {
        *to = self.0;
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; B])
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        // With one rounding where that is one instruction; elsewhere it would be a function call.
        if cfg!(target_arch = "aarch64") {
            Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], sum.0[lane])))
        } else {
            self.multiply(factor).add(sum)
        }
    }

    #[inline(always)]
    fn divide(self, by: Self) -> Self {
        self.zip(by, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, f32::max)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, f32::min)
    }

    #[inline(always)]
    fn power_of_two(rounded: Self) -> Self {
        Self(rounded.0.map(|v| f32::from_bits((v.to_bits() << 23).wrapping_add(1.0f32.to_bits()))))
    }
}

/// Lanes in vector registers. The functions are sound only where the processor has the instructions. `kernel!` ensures
/// that; no other code names these types.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    macro_rules! register {
        ($(#[$doc:meta])* $name:ident, $register:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident,
         $add:ident, $multiply:ident, $multiply_add:ident, $divide:ident, $max:ident, $min:ident,
         $bits:ident, $shift:ident, $add_bits:ident, $splat_bits:ident, $floats:ident) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub(in crate) struct $name($register);

            // SAFETY of every block here: the processor has the instructions, see the module; loads and stores access
            // whole arrays.
            impl Lanes<$lanes> for $name {
                #[inline(always)]
                fn load(from: &[f32; $lanes]) -> Self {
                    Self(unsafe { $load(from.as_ptr()) })
                }
                #[inline(always)]
                fn store(self, to: &mut [f32; $lanes]) {
                    unsafe { $store(to.as_mut_ptr(), self.0) }
                }
                #[inline(always)]
                fn splat(value: f32) -> Self {
                    Self(unsafe { $splat(value) })
                }
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    Self(unsafe { $add(self.0, other.0) })
                }
                #[inline(always)]
                fn multiply(self, other: Self) -> Self {
                    Self(unsafe { $multiply(self.0, other.0) })
                }
                #[inline(always)]
                fn multiply_add(self, factor: Self, sum: Self) -> Self {
                    Self(unsafe { $multiply_add(self.0, factor.0, sum.0) })
                }
                #[inline(always)]
                fn divide(self, by: Self) -> Self {
                    Self(unsafe { $divide(self.0, by.0) })
                }
                #[inline(always)]
                fn max(self, other: Self) -> Self {
                    Self(unsafe { $max(self.0, other.0) })
                }
                #[inline(always)]
                fn min(self, other: Self) -> Self {
                    Self(unsafe { $min(self.0, other.0) })
                }
                #[inline(always)]
                fn power_of_two(rounded: Self) -> Self {
                    Self(unsafe {
                        let exponent = $shift::<23>($bits(rounded.0));
                        $floats($add_bits(exponent, $splat_bits(1.0f32.to_bits() as i32)))
                    })
                }
            }
        };
    }

    register! {
        /// Sixteen lanes, with AVX-512F.
        Zmm, __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps,
        _mm512_add_ps, _mm512_mul_ps, _mm512_fmadd_ps, _mm512_div_ps, _mm512_max_ps, _mm512_min_ps,
        _mm512_castps_si512, _mm512_slli_epi32, _mm512_add_epi32, _mm512_set1_epi32, _mm512_castsi512_ps
    }

    register! {
        /// Eight lanes, with AVX2 and FMA.
        Ymm, __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps,
        _mm256_add_ps, _mm256_mul_ps, _mm256_fmadd_ps, _mm256_div_ps, _mm256_max_ps, _mm256_min_ps,
        _mm256_castps_si256, _mm256_slli_epi32, _mm256_add_epi32, _mm256_set1_epi32, _mm256_castsi256_ps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sigmoid_is_within_two_units_of_the_last_place() {
        for i in -40_000..=40_000i32 {
            let x = i as f32 * 0.0025;
            let expected = 1.0 / (1.0 + (-f64::from(x)).exp());
            let found = f64::from(Portable([x]).sigmoid().0[0]);
            assert!((found - expected).abs() <= 2.5e-7 * expected + 1e-37, "{x}: {found} {expected}");
        }
    }
}
