//! Load shedding.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;

use crate::fair_share::Client;
use crate::server::app::App;
use crate::server::problem::Problem;

/// Limits how many requests to these routes are handled at once. Those above the limit are refused before their body
/// is read.
pub(in crate::server::http) fn shed_requests(routes: Router<App>, app: &App) -> Router<App> {
    routes.route_layer(from_fn_with_state(app.clone(), shed))
}

async fn shed(State(app): State<App>, client: Client, request: Request, next: Next) -> Result<Response, Problem> {
    // Held until the handler returns. While the answer is sent, other limits apply.
    let _slot = app.requests.acquire(client, || app.service.retry_after())?;
    Ok(next.run(request).await)
}
