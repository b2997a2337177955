//! What can go wrong with a request, for clients of any protocol.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::batch::JobError;
use crate::preprocess::ImageError;

/// Why a request, or one of its images, is not answered. The messages are for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request asks for a model that is not served.
    #[error("no model `{asked}` is served; there is {served}")]
    UnknownModel {
        /// By the client.
        asked: String,
        /// Names, for the message.
        served: String,
    },
    /// More predictions than there are classes, or none.
    #[error("`top_k` must be between 1 and the model's {classes} classes, found {found}")]
    TopK {
        /// The model's.
        classes: usize,
        /// The client's.
        found: usize,
    },
    /// A foreign graph, of which only the scores are known.
    #[error("model `{model}` is a foreign ONNX file, of which only the scores are known; it has no feature maps")]
    NoFeatures {
        /// Which.
        model: String,
    },
    /// An output that the network does not have.
    #[error("this model has no `{found}`: it has {known}")]
    NoOutput {
        /// By the client.
        found: String,
        /// Names, for the message.
        known: String,
    },
    /// An input size that the network's strides do not divide, or too small for them.
    #[error("`size` must be multiples of {multiple}, at least {least}; found {width}x{height}")]
    Size {
        /// The client's.
        height: usize,
        /// The client's.
        width: usize,
        /// What sides must be multiples of.
        multiple: usize,
        /// The smallest side.
        least: usize,
    },
    /// More than may be asked for; the message says what to do.
    #[error("{0}")]
    FeaturesTooLarge(String),
    /// The request holds no image.
    #[error("the request holds no image")]
    NoImages,
    /// An image could not be read from the request's encoding.
    #[error("the image is not valid base64: {0}")]
    Base64(String),
    /// The image itself.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Too much is in flight.
    #[error("the server is at its limit of {limit}; try again in {} s", .retry_after.as_secs())]
    Overloaded {
        /// Which bound was met.
        limit: &'static str,
        /// When there will be room, by the present backlog; whole seconds.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("the deadline passed before the image was classified")]
    DeadlineExceeded,
    /// The deadline would pass: said at once, instead of after the wait.
    #[error("an answer would take about {} ms, which is past the request's deadline; allow more time, or try another server", .time.as_millis().max(1))]
    DeadlineUnmeetable {
        /// Predicted, until the first of the images is done.
        time: Duration,
    },
    /// The server is going down.
    #[error("the server is shutting down")]
    Draining,
    /// No worker has a model yet, or any more.
    #[error("the model is not ready")]
    NotReady,
    /// A bug, or a model that failed; the log says more.
    #[error("the image could not be processed because of an error in the server")]
    Internal,
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Expired => Self::DeadlineExceeded,
            JobError::ModelFailed => Self::Internal,
            JobError::Closed => Self::Draining,
        }
    }
}

impl Error {
    /// The error's identity.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownModel { .. } => Code::UnknownModel,
            Self::TopK { .. } | Self::NoFeatures { .. } | Self::NoOutput { .. } | Self::Size { .. } => {
                Code::InvalidParameter
            }
            Self::FeaturesTooLarge(_) => Code::FeaturesTooLarge,
            Self::NoImages => Code::NoImage,
            Self::Base64(_) => Code::InvalidBase64,
            Self::Overloaded { .. } => Code::Overloaded,
            Self::DeadlineExceeded | Self::DeadlineUnmeetable { .. } => Code::DeadlineExceeded,
            Self::Draining => Code::Draining,
            Self::NotReady => Code::NotReady,
            Self::Internal => Code::Internal,
            Self::Image(image) => match image {
                ImageError::Empty => Code::NoImage,
                ImageError::UnsupportedFormat { .. } | ImageError::UnsupportedVariant { .. } => {
                    Code::UnsupportedImageFormat
                }
                ImageError::Undecodable { .. } | ImageError::DecoderPanic(_) | ImageError::TooSlow(_) => {
                    Code::UndecodableImage
                }
                ImageError::TooManyPixels { .. } | ImageError::TooManyScans(_) => Code::ImageTooLarge,
                ImageError::Values(_) => Code::InvalidRequest,
                ImageError::Internal => Code::Internal,
            },
        }
    }
}

/// Declares the codes once: variant, and name as clients see it.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The identity of an error: stable, the same in every protocol, in problems, images' outcomes and metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $variant,)+ }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

codes! {
    /// A parameter is unknown, or its value is out of range.
    InvalidParameter = "invalid_parameter",
    /// The body is not the JSON that is expected.
    InvalidJson = "invalid_json",
    /// The body is not valid multipart.
    InvalidMultipart = "invalid_multipart",
    /// An image is not valid base64.
    InvalidBase64 = "invalid_base64",
    /// The request is not well-formed HTTP for its route.
    InvalidRequest = "invalid_request",
    /// There is no image in the request, or an empty one.
    NoImage = "no_image",
    /// The body has more bytes than are accepted.
    BodyTooLarge = "body_too_large",
    /// The request has more images than are accepted.
    TooManyImages = "too_many_images",
    /// The image has more pixels than are accepted.
    ImageTooLarge = "image_too_large",
    /// The feature maps asked for are larger than are made.
    FeaturesTooLarge = "features_too_large",
    /// The answer is to be had in no form that the client accepts.
    NotAcceptable = "not_acceptable",
    /// The body is of no kind that is read.
    UnsupportedMediaType = "unsupported_media_type",
    /// The image is in no format that is decoded.
    UnsupportedImageFormat = "unsupported_image_format",
    /// The image is in a known format, and broken.
    UndecodableImage = "undecodable_image",
    /// The model is not served.
    UnknownModel = "unknown_model",
    /// There is nothing at this path.
    UnknownRoute = "unknown_route",
    /// The path exists, with other methods.
    MethodNotAllowed = "method_not_allowed",
    /// The body did not arrive in time.
    BodyTimeout = "body_timeout",
    /// Too much is in flight.
    Overloaded = "overloaded",
    /// No worker is ready.
    NotReady = "not_ready",
    /// The server is going down.
    Draining = "draining",
    /// The client's or the server's deadline passed.
    DeadlineExceeded = "deadline_exceeded",
    /// A mistake of ours.
    Internal = "internal",
}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        "Code".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::ALL.iter().map(|code| code.as_str()).collect();
        json_schema!({ "type": "string", "enum": names, "description": "The identity of an error; stable." })
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
