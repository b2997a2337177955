//! Compiles a loop twice, for every processor and for those with AVX2, and selects one at run time.

/// Declares a function that runs `$body`, an `#[inline(always)]` function, compiled for AVX2 where the processor has
/// it.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $kind:ty),* $(,)?) = $body:path) => {
        $(#[$doc])*
        pub(super) fn $name($($argument: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $kind),*) {
                    $body($($argument),*);
                }
                if std::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    #[allow(unsafe_code)]
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body($($argument),*);
        }
    };
}

pub(super) use vectorised;
