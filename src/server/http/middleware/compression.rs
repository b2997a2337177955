//! Compression of answers.

use http::{Extensions, HeaderMap, StatusCode, Version};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

/// Smaller answers gain nothing from compression.
const COMPRESS_ABOVE: u64 = 1024;

/// An extension of answers that are not worth compressing.
#[derive(Clone, Copy)]
pub(in crate::server::http) struct Uncompressed;

/// Compresses large answers that are neither images nor [`Uncompressed`].
pub(super) fn compression() -> CompressionLayer<impl Predicate + Send + Sync> {
    let compressible =
        |_: StatusCode, _: Version, _: &HeaderMap, extensions: &Extensions| extensions.get::<Uncompressed>().is_none();
    let predicate = SizeAbove::new(COMPRESS_ABOVE).and(NotForContentType::IMAGES).and(compressible);
    CompressionLayer::new().compress_when(predicate)
}
