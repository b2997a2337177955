//! The HTTP interface, one file per resource. A handler plans the request, reads its body, calls [`crate::service`]
//! once, and encodes the answer.

mod accept;
mod admin;
mod answers;
mod body;
mod classify;
mod context;
mod features;
mod images;
mod middleware;
mod models;
mod oip_rest;
mod openapi;

use axum::Router;
use axum::routing::{get, post};
use http::StatusCode;

use super::app::App;
use super::problem::Problem;

impl App {
    /// The routes for clients, and those for operators unless they have another listener.
    pub(crate) fn public(&self) -> Router {
        let api = Router::new()
            .route("/v1/classify", post(classify::classify))
            .route("/v1/features", post(features::features))
            .route("/v1/attention", post(features::attention))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{id}", get(models::show))
            .merge(oip_rest::infer_routes());
        let routes = middleware::shed_requests(api, self);
        let routes = routes.merge(oip_rest::metadata_routes()).merge(openapi::routes(self));
        let routes =
            if self.config.addresses.admin_addr.is_none() { routes.merge(Self::administrative()) } else { routes };
        self.finish(routes)
    }

    /// The routes for operators, on their own listener.
    pub(crate) fn private(&self) -> Router {
        self.finish(Self::administrative())
    }

    /// No routes, only errors: what a listener for gRPC answers to other requests.
    pub(crate) fn fallback_router(&self) -> Router {
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
        middleware::apply_middleware(routes, self).with_state(self.clone())
    }
}
