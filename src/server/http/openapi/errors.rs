//! The errors of routes that take images, in one table, and those of routes about a model.

use crate::service::Code;

/// Routes that have the same errors.
#[derive(Clone, Copy)]
pub(super) enum Routes {
    /// `/v1/classify`.
    Classify,
    /// `/v1/features` and `/v1/attention`.
    Features,
    /// `/v2/…/infer`.
    Infer,
}

/// Each error, and whether it is one of [`Routes::Classify`], [`Routes::Features`] and [`Routes::Infer`].
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

/// The errors of routes about one model.
pub(super) const MODEL_ERRORS: [Code; 3] = [Code::InvalidParameter, Code::InvalidRequest, Code::UnknownModel];

/// The errors of routes that take images.
pub(super) fn image_errors(routes: Routes) -> Vec<Code> {
    IMAGE_ERRORS.iter().filter(|(_, has)| has[routes as usize]).map(|(code, _)| *code).collect()
}
