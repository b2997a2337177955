//! The HTTP interface: one file a resource. A handler decodes its input, makes one call to [`crate::service`], encodes.

mod accept;
mod admin;
mod body;
mod classify;
mod features;
mod images;
mod inference;
pub(crate) mod layers;
mod linger;
mod models;
mod openapi;
mod tensors;

pub(in crate::server) use body::client;
pub(in crate::server) use classify::priority;
pub(in crate::server) use features::LARGE_ANSWER;
pub(in crate::server) use tensors::{Dtype, write_row};

use axum::Router;
use axum::routing::{get, post};
use http::StatusCode;

use super::app::App;
use super::problem::Problem;

impl App {
    /// The routes that clients use; with the administrative ones unless those have a listener of their own.
    pub(crate) fn public(&self) -> Router {
        let api = Router::new()
            .route("/v1/classify", post(classify::classify))
            .route("/v1/features", post(features::features))
            .route("/v1/attention", post(features::attention))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{id}", get(models::show))
            .merge(inference::work());
        let routes = layers::shed_past(api, self).merge(inference::about()).merge(openapi::routes(&self.config));
        let routes = if self.config.admin.is_none() { routes.merge(Self::administrative()) } else { routes };
        self.finish(routes)
    }

    /// The routes for operators, for the private listener.
    pub(crate) fn private(&self) -> Router {
        self.finish(Self::administrative())
    }

    /// Only the errors, for a listener of another protocol.
    pub(crate) fn nothing(&self) -> Router {
        self.finish(Router::new())
    }

    fn administrative() -> Router<Self> {
        Router::new()
            .route("/metrics", get(admin::metrics))
            .route("/livez", get(admin::livez))
            .route("/readyz", get(admin::readyz))
    }

    fn finish(&self, routes: Router<Self>) -> Router {
        let routes = routes.fallback(async || Problem::of_status(StatusCode::NOT_FOUND));
        layers::around(routes, self).with_state(self.clone())
    }
}
