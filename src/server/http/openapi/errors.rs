//! Tables of the errors that the described routes can return.

use crate::service::Code;

/// Group of routes that have the same errors.
#[derive(Clone, Copy)]
pub(super) enum ImageRoutes {
    /// `/v1/classify`.
    Classify,
    /// `/v1/features` and `/v1/attention`.
    Features,
    /// `/v2/models/{model}/infer`, with and without a version.
    Infer,
}

/// Errors of routes that take images. The columns are [`ImageRoutes::Classify`], [`ImageRoutes::Features`] and
/// [`ImageRoutes::Infer`].
const IMAGE_ERRORS: [(Code, [bool; 3]); 19] = {
    const YES: bool = true;
    const NO: bool = false;
    [
        (Code::InvalidParameter, [YES, YES, YES]),
        (Code::InvalidJson, [YES, YES, YES]),
        (Code::InvalidMultipart, [YES, YES, NO]),
        (Code::InvalidBase64, [YES, YES, YES]),
        (Code::InvalidRequest, [YES, YES, YES]),
        (Code::NoImage, [YES, YES, YES]),
        (Code::UnknownModel, [YES, YES, YES]),
        (Code::NotAcceptable, [NO, YES, NO]),
        (Code::BodyTimeout, [YES, YES, YES]),
        (Code::BodyTooLarge, [YES, YES, YES]),
        (Code::TooManyImages, [YES, YES, YES]),
        (Code::ImageTooLarge, [YES, YES, YES]),
        (Code::FeaturesTooLarge, [NO, YES, YES]),
        (Code::UnsupportedMediaType, [YES, YES, YES]),
        (Code::UnsupportedImageFormat, [YES, YES, YES]),
        (Code::UndecodableImage, [YES, YES, YES]),
        (Code::Overloaded, [YES, YES, YES]),
        (Code::NotReady, [YES, YES, YES]),
        (Code::Draining, [YES, YES, YES]),
    ]
};

/// Errors of routes that describe one model.
pub(super) const MODEL_ERRORS: [Code; 3] = [Code::InvalidParameter, Code::InvalidRequest, Code::UnknownModel];

/// Errors of a group of routes that take images.
pub(super) fn image_errors(routes: ImageRoutes) -> Vec<Code> {
    IMAGE_ERRORS.iter().filter(|(_, columns)| columns[routes as usize]).map(|(code, _)| *code).collect()
}
