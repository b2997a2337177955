//! The Open Inference Protocol over gRPC.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use tokio::time::{Duration, Instant};
use tonic::{Request, Response, Status, Streaming};

use super::Grpc;
use super::call::Call;
use super::service::open;
use crate::preprocess::RequestContext;
use crate::server::encode::run_by_cost;
use crate::server::oip::{self, Elements, InferRequest, InferResponse, InputTensor, Parameter, RequestedOutput};
use crate::server::problem::Problem;
use crate::server::retain::RetainedMemory;
use crate::server::shutdown::Phase;
use crate::service::{Code, Error};
use ghostserve_proto::inference as proto;
use ghostserve_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use ghostserve_proto::inference::infer_parameter::ParameterChoice;
use ghostserve_proto::inference::model_infer_request::InferRequestedOutputTensor;
use ghostserve_proto::inference::model_infer_response::InferOutputTensor;

/// Numbers of a request above which they are copied on a core.
const LARGE_TENSOR: usize = 64 << 10;

/// Time for copying one number.
const COPY_NUMBER: Duration = Duration::from_nanos(2);

impl Grpc {
    /// Answers one request, which came at a certain time.
    async fn infer(
        &self,
        call: &Call,
        came: Instant,
        mut request: proto::ModelInferRequest,
    ) -> Result<InferResponse, Problem> {
        // Read. Numbers are copied one by one: a large tensor takes milliseconds, and waits for a core as decoding
        // does.
        let contents = request.inputs.iter().filter_map(|input| input.contents.as_ref());
        let numbers: usize = contents.map(|c| c.fp32_contents.len() + c.uint_contents.len()).sum();
        let cost = (numbers > LARGE_TENSOR).then(|| COPY_NUMBER * u32::try_from(numbers).unwrap_or(u32::MAX));
        let (name, version) = (std::mem::take(&mut request.model_name), std::mem::take(&mut request.model_version));
        let context = call.context(came);
        // The message counts against the memory for bodies until it is read, also if the client leaves meanwhile.
        let meter = call.meter.clone();
        let read = move || {
            let _meter = meter;
            read(request, context, came)
        };
        let request = run_by_cost(&self.app, context, cost, read).await??;
        // Plan.
        let model = oip::find(&self.app, &name, &version)?;
        let (plan, images) = oip::plan_infer(&self.app, model, request)?;
        // Run and encode the tensors.
        oip::infer(&self.app, plan, images).await
    }

    fn find(&self, call: &Call, name: &str, version: &str) -> Result<oip::NamedModel, Status> {
        oip::find(&self.app, name, version).map_err(|problem| call.errors.status(&problem))
    }
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

fn read(request: proto::ModelInferRequest, context: RequestContext, came: Instant) -> Result<InferRequest, Problem> {
    let raw = request.raw_input_contents.len();
    if raw > 0 && raw != request.inputs.len() {
        return Err(invalid(format!("there are {} inputs and {raw} raw contents", request.inputs.len())));
    }
    let mut raw = request.raw_input_contents.into_iter();
    let mut inputs = Vec::with_capacity(request.inputs.len().min(4));
    for input in request.inputs {
        let elements = match (raw.next(), input.contents) {
            (Some(bytes), None) => Elements::Raw(bytes),
            (Some(_), Some(_)) => return Err(invalid("an input has either contents or raw contents")),
            (None, Some(contents)) => contents_of(&input.datatype, contents)?,
            (None, None) => return Err(invalid("an input has neither contents nor raw contents")),
        };
        inputs.push(InputTensor { name: input.name, datatype: input.datatype, shape: input.shape, elements });
    }
    let output = |output: InferRequestedOutputTensor| {
        let mut classification = 0;
        for (name, value) in parameters(output.parameters) {
            match (name.as_str(), value) {
                ("classification", Parameter::Number(classes)) if (0.0..1e9).contains(&classes) => {
                    classification = classes as usize;
                }
                // Outputs are always bytes in this encoding.
                ("binary_data", _) => {}
                _ => return Err(invalid(format!("an output has no parameter `{name}` of this kind"))),
            }
        }
        Ok(RequestedOutput { name: output.name, classification })
    };
    Ok(InferRequest {
        id: request.id,
        parameters: parameters(request.parameters),
        outputs: request.outputs.into_iter().map(output).collect::<Result<_, _>>()?,
        inputs,
        context,
        start: came,
    })
}

fn parameters(map: HashMap<String, proto::InferParameter>) -> BTreeMap<String, Parameter> {
    let value = |choice| match choice {
        ParameterChoice::BoolParam(flag) => Parameter::Bool(flag),
        ParameterChoice::Int64Param(number) => Parameter::Number(number as f64),
        ParameterChoice::Uint64Param(number) => Parameter::Number(number as f64),
        ParameterChoice::DoubleParam(number) => Parameter::Number(number),
        ParameterChoice::StringParam(text) => Parameter::Text(text),
    };
    map.into_iter().filter_map(|(name, parameter)| Some((name, value(parameter.parameter_choice?)))).collect()
}

/// The elements in the field of the datatype. Elements in other fields are ignored, so that the tensor has too few.
fn contents_of(datatype: &str, contents: proto::InferTensorContents) -> Result<Elements, Problem> {
    Ok(match datatype {
        "BYTES" => Elements::Texts(contents.bytes_contents.into_iter().map(Ok).collect()),
        "UINT8" => {
            let bytes: Result<Vec<u8>, _> = contents.uint_contents.into_iter().map(u8::try_from).collect();
            Elements::Raw(bytes.map_err(|_| invalid("UINT8 is 0 to 255, whole numbers"))?.into())
        }
        _ => {
            let mut bytes = BytesMut::with_capacity(contents.fp32_contents.len() * 4);
            contents.fp32_contents.iter().for_each(|number| bytes.put_f32_le(*number));
            Elements::Raw(bytes.freeze())
        }
    })
}

/// The message of an answer, and the memory of its maps.
fn write(response: InferResponse) -> (proto::ModelInferResponse, Option<RetainedMemory>) {
    let model_name = response.model.name();
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut raw: Vec<Bytes> = Vec::with_capacity(response.outputs.len());
    for output in response.outputs {
        outputs.push(InferOutputTensor {
            name: output.name,
            datatype: output.datatype.to_owned(),
            shape: output.shape,
            parameters: HashMap::new(),
            contents: None,
        });
        raw.push(output.data.into());
    }
    let message = proto::ModelInferResponse {
        model_name,
        model_version: oip::VERSION.to_owned(),
        id: response.id,
        parameters: HashMap::new(),
        outputs,
        raw_output_contents: raw,
    };
    (message, response.memory.map(RetainedMemory::new))
}

#[tonic::async_trait]
impl GrpcInferenceService for Grpc {
    async fn server_live(
        &self,
        _: Request<proto::ServerLiveRequest>,
    ) -> Result<Response<proto::ServerLiveResponse>, Status> {
        Ok(Response::new(proto::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<proto::ServerReadyRequest>,
    ) -> Result<Response<proto::ServerReadyResponse>, Status> {
        let ready = self.app.lifecycle.phase() == Phase::Running && self.app.service.is_ready();
        Ok(Response::new(proto::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<proto::ModelReadyRequest>,
    ) -> Result<Response<proto::ModelReadyResponse>, Status> {
        let (_, query) = open(request)?;
        // An unknown model is not ready. Triton's clients expect this instead of an error.
        let ready = oip::find(&self.app, &query.name, &query.version).is_ok_and(|model| model.served.is_ready());
        Ok(Response::new(proto::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<proto::ServerMetadataRequest>,
    ) -> Result<Response<proto::ServerMetadataResponse>, Status> {
        let oip::ServerMetadata { name, version, extensions } = oip::server();
        Ok(Response::new(proto::ServerMetadataResponse { name, version, extensions }))
    }

    async fn model_metadata(
        &self,
        request: Request<proto::ModelMetadataRequest>,
    ) -> Result<Response<proto::ModelMetadataResponse>, Status> {
        let (call, query) = open(request)?;
        let metadata = oip::metadata(&self.find(&call, &query.name, &query.version)?);
        Ok(Response::new(metadata.into()))
    }

    async fn model_infer(
        &self,
        request: Request<proto::ModelInferRequest>,
    ) -> Result<Response<proto::ModelInferResponse>, Status> {
        let (mut call, request) = open(request)?;
        call.record_read(&self.app.metrics);
        let answer = self.infer(&call, call.start, request).await;
        let (message, memory) = write(answer.map_err(|problem| call.errors.status(&problem))?);
        let mut response = Response::new(message);
        if let Some(memory) = memory {
            response.extensions_mut().insert(memory);
        }
        Ok(response)
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<proto::ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<proto::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (call, messages) = open(request)?;
        // One request after the other, so that the answers have the order that the protocol guarantees.
        let answers =
            futures::stream::unfold((self.clone(), call, messages), |(grpc, call, mut messages)| async move {
                let request = tokio::select! {
                    message = messages.message() => match message {
                        Ok(message) => message?,
                        Err(status) => return Some((Err(status), (grpc, call, messages))),
                    },
                    () = grpc.app.lifecycle.reached(Phase::Stopping) => {
                        return Some((Err(call.errors.status(&Error::Draining.into())), (grpc, call, messages)));
                    }
                };
                let (size, id) = (call.meter.next_message_bytes(), request.id.clone());
                let answer = grpc.infer(&call, Instant::now(), request).await;
                call.meter.release(size);
                let answer = match answer {
                    // The memory of the maps is released before they are sent: a stream has only one answer at a time.
                    Ok(answer) => proto::ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(write(answer).0),
                    },
                    Err(problem) => proto::ModelStreamInferResponse {
                        error_message: call.errors.status(&problem).message().to_owned(),
                        // Clients match it with their request.
                        infer_response: Some(proto::ModelInferResponse { id, ..proto::ModelInferResponse::default() }),
                    },
                };
                Some((Ok(answer), (grpc, call, messages)))
            });
        Ok(Response::new(Box::pin(ends_with_the_first_error(answers))))
    }

    async fn model_config(
        &self,
        request: Request<proto::ModelConfigRequest>,
    ) -> Result<Response<proto::ModelConfigResponse>, Status> {
        let (call, query) = open(request)?;
        let config = oip::config(&self.app, &self.find(&call, &query.name, &query.version)?);
        Ok(Response::new(proto::ModelConfigResponse { config: Some(config.into()) }))
    }

    async fn model_statistics(
        &self,
        request: Request<proto::ModelStatisticsRequest>,
    ) -> Result<Response<proto::ModelStatisticsResponse>, Status> {
        let (call, query) = open(request)?;
        let models = match query.name.is_empty() {
            true => oip::all(&self.app),
            false => vec![self.find(&call, &query.name, &query.version)?],
        };
        let model_stats = models.iter().map(|model| oip::statistics(model).into()).collect();
        Ok(Response::new(proto::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<proto::RepositoryIndexRequest>,
    ) -> Result<Response<proto::RepositoryIndexResponse>, Status> {
        let entry = |entry: oip::IndexEntry| proto::repository_index_response::ModelIndex {
            name: entry.name,
            version: entry.version,
            state: entry.state,
            reason: entry.reason,
        };
        let models = oip::index(&self.app, request.into_inner().ready).into_iter().map(entry).collect();
        Ok(Response::new(proto::RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<proto::RepositoryModelLoadRequest>,
    ) -> Result<Response<proto::RepositoryModelLoadResponse>, Status> {
        let (call, query) = open(request)?;
        self.find(&call, &query.model_name, "")?;
        Err(call.errors.status(&oip::not_loadable()))
    }

    async fn repository_model_unload(
        &self,
        request: Request<proto::RepositoryModelUnloadRequest>,
    ) -> Result<Response<proto::RepositoryModelUnloadResponse>, Status> {
        let (call, query) = open(request)?;
        self.find(&call, &query.model_name, "")?;
        Err(call.errors.status(&oip::not_loadable()))
    }
}

/// A stream that ends after its first error.
fn ends_with_the_first_error<T: Send>(
    stream: impl Stream<Item = Result<T, Status>> + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let mut failed = false;
    futures::StreamExt::take_while(stream, move |item| {
        let go_on = !failed;
        failed = item.is_err();
        std::future::ready(go_on)
    })
}
