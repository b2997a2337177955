//! Classification: the plan of a request, and predictions from the scores of its images.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::cache::Scored;
use super::{Error, Prediction, PredictionOptions, Scores, ServedModel, Service, StageTimes, predict};
use crate::preprocess::{ImageInfo, RequestContext, Source};

/// A request to classify whose model is known. It is made before the images are there.
#[derive(Clone, Debug)]
pub struct ClassifyPlan {
    /// The model that answers.
    pub model: Arc<ServedModel>,
    /// Which predictions, for every image.
    pub predictions: PredictionOptions,
    /// Client, priority and deadline.
    pub context: RequestContext,
}

/// The answer to a request to classify.
#[derive(Debug)]
pub struct Classified {
    /// One outcome per image, in order.
    pub results: Vec<Result<ImageResult, Error>>,
    /// The longest that any image spent in each stage.
    pub times: StageTimes,
}

/// The answer for one image.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ImageResult {
    /// Most probable first.
    pub predictions: Vec<Prediction>,
    /// The image that was classified.
    pub image: ImageInfo,
}

impl ClassifyPlan {
    /// A plan for a model that is already known, with the default predictions.
    #[must_use]
    pub fn new(model: Arc<ServedModel>, context: RequestContext) -> Self {
        Self { predictions: PredictionOptions::default_for(model.labels.len()), model, context }
    }
}

impl Service {
    /// Plans a classification by a model, or by the default one, with the default predictions. This is the request's
    /// only lookup of its model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn plan_classify(&self, model: Option<&str>, context: RequestContext) -> Result<ClassifyPlan, Error> {
        Ok(ClassifyPlan::new(Arc::clone(self.model(model)?), context))
    }

    /// Classifies images, given in the order of the results. An image that could not be read from the request keeps its
    /// position as an error.
    ///
    /// # Errors
    /// The request as a whole cannot be served; or every image in it failed, and then this is the first one's error.
    pub async fn classify(&self, plan: &ClassifyPlan, images: Vec<Result<Source, Error>>) -> Result<Classified, Error> {
        let (model, options) = (&plan.model, plan.predictions);
        let classes = model.labels.len();
        // The order of checks decides which error a client sees: admission and the body come before `top_k`.
        if !(1..=classes).contains(&options.top_k) {
            return Err(Error::TopK { classes, found: options.top_k });
        }
        let Scores { rows, times } = self.scores(plan, images).await?;
        let result = |scored: Arc<Scored>| ImageResult {
            predictions: predict(scored.scores.clone(), model.manifest.network.output, &model.labels, options),
            image: scored.info,
        };
        let results = rows.into_iter().map(|row| row.map(result)).collect();
        Ok(Classified { results, times })
    }
}
