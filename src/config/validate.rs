//! Whether settings fit together.
//!
//! All rules, also those about one number, are checked on a finished [`Config`]: tests and other programs build it
//! without a command line.

use super::Config;
use crate::preprocess::MAX_BYTES_PER_PIXEL;
use crate::runtime::NoSuchPrecision;

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A number that must not be zero.
    #[error("{setting} must be at least 1, found 0")]
    Zero {
        /// The flag.
        setting: &'static str,
    },
    /// One bound makes another unreachable.
    #[error("{larger} must be at least {smaller}: expected {minimum} or more, found {found}")]
    Order {
        /// The flag that is too small.
        larger: &'static str,
        /// What it must be able to hold.
        smaller: &'static str,
        /// The smallest value that works.
        minimum: u64,
        /// The value of the flag.
        found: u64,
    },
    /// A value that is not a fraction.
    #[error("{setting} must be above 0 and at most 1, found {found}")]
    Fraction {
        /// The flag.
        setting: &'static str,
        /// The value of the flag.
        found: String,
    },
    /// A precision that the provider does not have.
    #[error(transparent)]
    Precision(#[from] NoSuchPrecision),
}

/// A bound that must be at least as large as another one.
struct OrderRule {
    larger: &'static str,
    found: u64,
    smaller: &'static str,
    minimum: u64,
}

impl Config {
    /// Checks that the settings fit together.
    ///
    /// # Errors
    /// The first contradiction, with the flags to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.execution.backend.check()?;
        if let Some((setting, _)) = self.counts().into_iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero { setting });
        }
        let share = self.load.max_client_share;
        if !(share > 0.0 && share <= 1.0) {
            return Err(ConfigError::Fraction { setting: "--max-client-share", found: share.to_string() });
        }
        match self.order_rules().into_iter().find(|rule| rule.found < rule.minimum) {
            Some(OrderRule { larger, found, smaller, minimum }) => {
                Err(ConfigError::Order { larger, smaller, minimum, found })
            }
            None => Ok(()),
        }
    }

    /// The numbers that must not be zero, by flag.
    fn counts(&self) -> [(&'static str, u64); 14] {
        let (execution, request, load) = (&self.execution, &self.request, &self.load);
        [
            ("--cores", execution.cores.unwrap_or(1) as u64),
            ("--workers", execution.workers.unwrap_or(1) as u64),
            ("--threads-per-worker", execution.threads_per_worker.unwrap_or(1) as u64),
            ("--max-batch", execution.max_batch.unwrap_or(1) as u64),
            ("--max-body-bytes", request.max_body_bytes as u64),
            ("--max-images-per-request", request.max_images_per_request as u64),
            ("--max-part-headers", request.max_part_headers as u64),
            ("--max-connections", load.max_connections as u64),
            ("--max-requests-in-flight", load.max_requests_in_flight as u64),
            ("--max-http2-streams", u64::from(load.max_http2_streams)),
            ("--feature-sessions", self.features.feature_sessions as u64),
            ("--max-jpeg-scans", request.max_jpeg_scans as u64),
            ("--max-image-pixels", request.max_image_pixels),
            ("--max-image-side", u64::from(request.max_image_side)),
        ]
    }

    /// The bounds that must be able to hold one request of the largest allowed size. A request that can never be
    /// admitted must be refused for its size; otherwise its client would be told to try again.
    fn order_rules(&self) -> [OrderRule; 6] {
        let (request, features, load) = (&self.request, &self.features, &self.load);
        [
            OrderRule {
                larger: "--max-multi-body-bytes",
                found: request.max_multi_body_bytes as u64,
                smaller: "--max-body-bytes",
                minimum: request.max_body_bytes as u64,
            },
            OrderRule {
                larger: "--max-body-bytes-in-flight",
                found: load.max_body_bytes_in_flight as u64,
                smaller: "--max-multi-body-bytes",
                minimum: request.max_multi_body_bytes as u64,
            },
            OrderRule {
                larger: "--max-feature-bytes-in-flight",
                found: features.max_feature_bytes_in_flight as u64,
                smaller: "--max-feature-bytes",
                minimum: features.max_feature_bytes as u64,
            },
            OrderRule {
                larger: "--max-images-in-flight",
                found: load.max_images_in_flight as u64,
                smaller: "--max-images-per-request",
                minimum: request.max_images_per_request as u64,
            },
            OrderRule {
                larger: "--max-multipart-parts",
                found: request.max_multipart_parts as u64,
                smaller: "--max-images-per-request",
                minimum: request.max_images_per_request as u64,
            },
            OrderRule {
                larger: "--max-decoded-bytes-in-flight",
                found: load.max_decoded_bytes_in_flight,
                smaller: "16 bytes for each of --max-image-pixels",
                minimum: request.max_image_pixels.saturating_mul(MAX_BYTES_PER_PIXEL),
            },
        ]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::{Arg, FromArgMatches};

    use super::*;

    /// The error of a command line that sets one flag, in an empty environment.
    fn error(flag: &str, value: &str) -> ConfigError {
        let matches = Config::command().try_get_matches_from(["serve", flag, value]).unwrap();
        Config::from_arg_matches(&matches).unwrap().validate().unwrap_err()
    }

    #[test]
    fn the_defaults_fit_together() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn every_rule_names_the_flag_that_sets_its_number() {
        for (flag, _) in Config::default().counts() {
            assert_eq!(error(flag, "0"), ConfigError::Zero { setting: flag });
        }
        for rule in Config::default().order_rules() {
            let OrderRule { larger, smaller, minimum, .. } = rule;
            assert_eq!(error(larger, "1"), ConfigError::Order { larger, smaller, minimum, found: 1 });
        }
        for found in ["0", "1.5", "NaN"] {
            let fraction = ConfigError::Fraction { setting: "--max-client-share", found: found.to_owned() };
            assert_eq!(error("--max-client-share", found), fraction);
        }
    }

    #[test]
    fn every_flag_in_a_message_exists() {
        let command = Config::command();
        let flags: Vec<_> = command.get_arguments().filter_map(Arg::get_long).collect();
        for rule in Config::default().order_rules() {
            let message = error(rule.larger, "1").to_string();
            let named: Vec<_> = message.split([' ', ':', ',']).filter_map(|word| word.strip_prefix("--")).collect();
            assert_eq!(named.len(), 2, "{message}");
            assert!(named.iter().all(|flag| flags.contains(flag)), "{message}");
        }
    }
}
