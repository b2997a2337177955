//! `grpc.health.v1`: reports the state of `/readyz` to load balancers that use gRPC.

use std::pin::Pin;

use futures::Stream;
use tokio::time::{Duration, interval};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::Grpc;
use crate::server::shutdown::Phase;

/// Services whose health is reported. The empty name stands for the whole server.
const SERVICES: [&str; 3] = ["", "ghostserve.v1.InferenceService", "inference.GRPCInferenceService"];
/// Interval at which the state is checked for a client that watches it.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

impl Grpc {
    fn health(&self, service: &str) -> ServingStatus {
        if !SERVICES.contains(&service) {
            return ServingStatus::ServiceUnknown;
        }
        match self.app.lifecycle.phase() == Phase::Running && self.app.service.is_ready() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Grpc {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match self.health(&request.into_inner().service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found("no such service; the empty name is the server's, reflection lists the others"))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let state = (self.clone(), request.into_inner().service, interval(WATCH_INTERVAL), None);
        let changes = futures::stream::unfold(state, |(grpc, service, mut clock, last)| async move {
            loop {
                clock.tick().await;
                let status = grpc.health(&service);
                if last != Some(status) {
                    return Some((Ok(response(status)), (grpc, service, clock, Some(status))));
                }
                // The client has received `NotServing`, which is final.
                if grpc.app.lifecycle.phase() >= Phase::Stopping {
                    return None;
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
