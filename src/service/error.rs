//! The errors of requests, for clients of any protocol.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::batch::JobError;
use crate::preprocess::ImageError;

/// The error of a request, or of one of its images. The messages are for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request asks for a model that is not served.
    #[error("no model `{asked}` is served; there is {served}")]
    UnknownModel {
        /// The name in the request.
        asked: String,
        /// The names of all models.
        served: String,
    },
    /// More predictions than there are classes, or none.
    #[error("`top_k` must be between 1 and the model's {classes} classes, found {found}")]
    TopK {
        /// Number of classes of the model.
        classes: usize,
        /// The value in the request.
        found: usize,
    },
    /// A foreign graph, of which only the scores are known.
    #[error("model `{model}` is a foreign ONNX file, of which only the scores are known; it has no feature maps")]
    NoFeatures {
        /// The model's name.
        model: String,
    },
    /// An output that the network does not have.
    #[error("this model has no `{found}`: it has {known}")]
    NoOutput {
        /// The name in the request.
        found: String,
        /// The names of the outputs that the network has.
        known: String,
    },
    /// An input size that the network's strides do not divide, or too small for them.
    #[error("`size` must be multiples of {multiple}, at least {least}; found {width}x{height}")]
    Size {
        /// The height in the request.
        height: usize,
        /// The width in the request.
        width: usize,
        /// The number whose multiples the sides must be.
        multiple: usize,
        /// The smallest side.
        least: usize,
    },
    /// The feature maps would exceed a limit. The message says what to do.
    #[error("{0}")]
    FeaturesTooLarge(String),
    /// The request holds no image.
    #[error("the request holds no image")]
    NoImages,
    /// An image could not be read from the request's encoding.
    #[error("the image is not valid base64: {0}")]
    Base64(String),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A limit of work in flight is reached.
    #[error("the server is at its limit of {limit}; try again in {} s", .retry_after.as_secs())]
    Overloaded {
        /// The name of the limit.
        limit: &'static str,
        /// Time until there is capacity, predicted from the backlog; whole seconds.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("the deadline passed before the image was classified")]
    DeadlineExceeded,
    /// The deadline would pass. The client gets this error immediately instead of after the wait.
    #[error(
        "an answer would take about {} ms, which is past the request's deadline; allow more time, or try \
         another server",
        .time.as_millis().max(1)
    )]
    DeadlineUnmeetable {
        /// Predicted time until the first of the images is done.
        time: Duration,
    },
    /// The server shuts down.
    #[error("the server is shutting down")]
    Draining,
    /// No worker has a loaded model.
    #[error("the model is not ready")]
    NotReady,
    /// A bug, or a model that failed. The log has the details.
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
    /// The error's code.
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
                ImageError::Tensor(_) => Code::InvalidRequest,
                ImageError::Internal => Code::Internal,
            },
        }
    }
}

/// Declares each code once: the variant, and its name for clients.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The stable code of an error. It is the same in every protocol, in problems, in images' outcomes and in
        /// metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $variant,)+ }

        impl Code {
            /// All codes.
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
    /// The requested feature maps exceed a limit.
    FeaturesTooLarge = "features_too_large",
    /// The answer has no format that the client accepts.
    NotAcceptable = "not_acceptable",
    /// The type of the body is not supported.
    UnsupportedMediaType = "unsupported_media_type",
    /// The format of the image is not supported.
    UnsupportedImageFormat = "unsupported_image_format",
    /// The image is in a supported format, but damaged.
    UndecodableImage = "undecodable_image",
    /// The model is not served.
    UnknownModel = "unknown_model",
    /// There is nothing at this path.
    UnknownRoute = "unknown_route",
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed",
    /// The body did not arrive in time.
    BodyTimeout = "body_timeout",
    /// A limit of work in flight is reached.
    Overloaded = "overloaded",
    /// No worker is ready.
    NotReady = "not_ready",
    /// The server shuts down.
    Draining = "draining",
    /// The client's or the server's deadline passed.
    DeadlineExceeded = "deadline_exceeded",
    /// An error in the server.
    Internal = "internal",
}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        "ErrorCode".into()
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
