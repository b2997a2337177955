//! Conversions between the service's types and the messages of `ghostserve.v1`.

use bytes::Bytes;

use crate::cores::Priority;
use crate::preprocess::{Fit, Geometry, ImageInfo, Source};
use crate::server::problem::Problem;
use crate::server::tensors::ElementType;
use crate::service::{Classified, Error, ImageResult, Prediction, ServedModel, StageTimes};
use ghostserve_proto::v1;

/// Priority of a message. If it has none, that of the call's metadata.
pub(super) fn priority(message_priority: v1::Priority, metadata_priority: Priority) -> Priority {
    match message_priority {
        v1::Priority::Unspecified => metadata_priority,
        v1::Priority::Interactive => Priority::Interactive,
        v1::Priority::Background => Priority::Background,
    }
}

/// The images of a message.
///
/// # Errors
/// There are no images, or more than `max_images`.
pub(super) fn read_images(files: Vec<Bytes>, max_images: usize) -> Result<Vec<Result<Source, Error>>, Problem> {
    match files.len() {
        0 => Err(Error::NoImages.into()),
        images if images > max_images => Err(Problem::too_many_images(images, max_images)),
        _ => Ok(files.into_iter().map(|file| Ok(file.into())).collect()),
    }
}

/// Name of the requested model. `None` stands for the default model.
pub(super) fn model_name(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

pub(super) fn model_reference(model: &ServedModel) -> v1::ModelReference {
    v1::ModelReference { id: model.manifest.id.clone(), digest: model.digest.to_string() }
}

pub(super) fn timing(times: StageTimes) -> v1::Timing {
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    v1::Timing {
        decode_ms: ms(times.decode),
        resize_ms: ms(times.resize),
        queue_ms: ms(times.queue),
        infer_ms: ms(times.infer),
    }
}

pub(super) fn image_error(error: &Error) -> v1::ImageError {
    v1::ImageError { code: error.code().as_str().to_owned(), detail: error.to_string() }
}

pub(super) fn problem_error(problem: &Problem) -> v1::ImageError {
    v1::ImageError { code: problem.code.as_str().to_owned(), detail: problem.detail.clone() }
}

pub(super) fn image_info(info: ImageInfo) -> v1::ImageInfo {
    let format = info.format.map(|format| format.to_string().to_ascii_lowercase()).unwrap_or_default();
    v1::ImageInfo { format, width: info.width, height: info.height }
}

pub(super) fn prediction_message(prediction: Prediction) -> v1::Prediction {
    v1::Prediction {
        class: prediction.class as u32,
        label: prediction.label.name,
        wnid: prediction.label.wnid,
        probability: prediction.probability,
    }
}

pub(super) fn classify_response(served: &ServedModel, classified: Classified) -> v1::ClassifyResponse {
    use v1::classify_result::Outcome;
    let to_result = |result: Result<ImageResult, Error>| {
        let outcome = match result {
            Ok(result) => Outcome::Classification(v1::Classification {
                predictions: result.predictions.into_iter().map(prediction_message).collect(),
                image: Some(image_info(result.image)),
            }),
            Err(error) => Outcome::Error(image_error(&error)),
        };
        v1::ClassifyResult { outcome: Some(outcome) }
    };
    v1::ClassifyResponse {
        model: Some(model_reference(served)),
        timing: Some(timing(classified.times)),
        results: classified.results.into_iter().map(to_result).collect(),
    }
}

pub(super) fn geometry_message(geometry: Geometry) -> v1::Geometry {
    let fit = match geometry.fit {
        Fit::Crop => v1::Fit::Crop,
        Fit::Letterbox => v1::Fit::Letterbox,
        Fit::Stretch => v1::Fit::Stretch,
    };
    v1::Geometry {
        width: geometry.width as u32,
        height: geometry.height as u32,
        scale_x: geometry.scale[0],
        scale_y: geometry.scale[1],
        offset_x: geometry.offset[0],
        offset_y: geometry.offset[1],
        fit: fit.into(),
        visible: geometry.visible.to_vec(),
        padding: geometry.padding.to_vec(),
    }
}

impl From<ElementType> for v1::Dtype {
    fn from(dtype: ElementType) -> Self {
        match dtype {
            ElementType::F32 => Self::F32,
            ElementType::F16 => Self::F16,
        }
    }
}
