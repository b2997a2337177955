//! Bodies of inference requests and answers: JSON, and the binary tensors that may follow it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::Instant;

use crate::preprocess::RequestContext;
use crate::server::http::body::json_object;
use crate::server::http::images::{MAX_JSON_IMAGES, from_base64};
use crate::server::oip::{
    Elements, InferRequest, InferResponse, InputTensor, MAX_DIMENSIONS, MAX_PARAMETERS, MAX_TENSORS, OutputTensor,
    Parameter, RequestedOutput, VERSION, texts_of,
};
use crate::server::problem::Problem;
use crate::service::Code;

/// Maximum number of elements of a tensor in JSON: more than 32 images of 224x224. Larger tensors should be sent as
/// bytes.
const MAX_JSON_NUMBERS: usize = 8 << 20;

/// Which outputs are sent as bytes.
pub(super) struct BinaryOutputs {
    all: bool,
    by_name: HashMap<String, bool>,
}

/// The body of an answer.
pub(super) struct EncodedAnswer {
    /// Bytes of the JSON, if tensors follow it.
    pub(super) json_length: Option<usize>,
    pub(super) bytes: Vec<u8>,
}

/// An inference request of the Open Inference Protocol.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "InferRequest")]
pub(in crate::server::http) struct JsonRequest<'a> {
    /// Returned with the answer.
    #[serde(default)]
    id: Option<String>,
    #[serde(default, deserialize_with = "parameters")]
    parameters: BTreeMap<String, JsonParameter>,
    #[serde(borrow, deserialize_with = "list::<_, _, MAX_TENSORS>")]
    inputs: Vec<JsonInput<'a>>,
    /// All outputs if it is empty.
    #[serde(default, deserialize_with = "list::<_, _, MAX_TENSORS>")]
    outputs: Vec<JsonWanted>,
}

/// A value of a parameter.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[schemars(rename = "Parameter")]
enum JsonParameter {
    Bool(bool),
    Number(f64),
    Text(String),
}

/// An input tensor.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "InferInput")]
struct JsonInput<'a> {
    name: String,
    /// The images first.
    #[serde(deserialize_with = "list::<_, _, MAX_DIMENSIONS>")]
    shape: Vec<i64>,
    /// `BYTES`, `UINT8` or `FP32`.
    datatype: String,
    /// `binary_data_size` if the data follow the JSON.
    #[serde(default, deserialize_with = "parameters")]
    parameters: BTreeMap<String, JsonParameter>,
    /// In row-major order, nested or not; BYTES as base64.
    #[serde(default, borrow)]
    #[schemars(with = "Vec<serde_json::Value>")]
    data: Option<TensorData<'a>>,
}

/// A requested output.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RequestedOutput")]
struct JsonWanted {
    name: String,
    /// `classification`: a number of classes instead of all probabilities. `binary_data`: whether it is sent as bytes.
    #[serde(default, deserialize_with = "parameters")]
    parameters: BTreeMap<String, JsonParameter>,
}

impl<'de> Deserialize<'de> for JsonParameter {
    /// The code that serde derives for untagged values stores the whole value, however large, before it looks at its
    /// type.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParameterVisitor;
        impl Visitor<'_> for ParameterVisitor {
            type Value = JsonParameter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number or a text")
            }

            fn visit_bool<E>(self, flag: bool) -> Result<JsonParameter, E> {
                Ok(JsonParameter::Bool(flag))
            }

            fn visit_i64<E>(self, number: i64) -> Result<JsonParameter, E> {
                Ok(JsonParameter::Number(number as f64))
            }

            fn visit_u64<E>(self, number: u64) -> Result<JsonParameter, E> {
                Ok(JsonParameter::Number(number as f64))
            }

            fn visit_f64<E>(self, number: f64) -> Result<JsonParameter, E> {
                Ok(JsonParameter::Number(number))
            }

            fn visit_str<E>(self, text: &str) -> Result<JsonParameter, E> {
                Ok(JsonParameter::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(ParameterVisitor)
    }
}

/// Parses an array of at most `MAX` elements. An element of two characters can take a hundred bytes of memory.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct ListVisitor<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an array of at most {MAX} elements")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(element) = array.next_element()? {
                if list.len() == MAX {
                    return Err(Error::invalid_length(MAX + 1, &self));
                }
                list.push(element);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(ListVisitor::<T, MAX>(PhantomData))
}

/// Parses an object of at most [`MAX_PARAMETERS`] parameters.
fn parameters<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, JsonParameter>, D::Error> {
    struct ParametersVisitor;
    impl<'de> Visitor<'de> for ParametersVisitor {
        type Value = BTreeMap<String, JsonParameter>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an object of at most {MAX_PARAMETERS} parameters")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((name, value)) = object.next_entry()? {
                if map.len() == MAX_PARAMETERS {
                    return Err(Error::invalid_length(MAX_PARAMETERS + 1, &self));
                }
                map.insert(name, value);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(ParametersVisitor)
}

/// The elements of a tensor, flat.
enum TensorData<'a> {
    Empty,
    Numbers(Vec<f32>),
    Texts(Vec<Cow<'a, str>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for TensorData<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = TensorData::Empty;
        FlattenVisitor(&mut data).deserialize(deserializer)?;
        Ok(data)
    }
}

/// Collects the elements of nested arrays in one list.
struct FlattenVisitor<'d, 'a>(&'d mut TensorData<'a>);

impl<'a> FlattenVisitor<'_, 'a> {
    fn number<E: Error>(self, number: f64) -> Result<(), E> {
        match self.0 {
            TensorData::Numbers(numbers) if numbers.len() == MAX_JSON_NUMBERS => {
                return Err(E::custom(format!(
                    "a tensor of more than {MAX_JSON_NUMBERS} numbers; send it as binary data"
                )));
            }
            TensorData::Numbers(numbers) => numbers.push(number as f32),
            TensorData::Empty => *self.0 = TensorData::Numbers(vec![number as f32]),
            TensorData::Texts(_) => return Err(E::custom("a tensor holds either numbers or texts")),
        }
        Ok(())
    }

    fn text<E: Error>(self, text: Cow<'a, str>) -> Result<(), E> {
        match self.0 {
            // Limited here: millions of empty texts would take ten times the body's memory.
            TensorData::Texts(texts) if texts.len() == MAX_JSON_IMAGES => {
                return Err(E::custom(format!("a tensor of more than {MAX_JSON_IMAGES} images")));
            }
            TensorData::Texts(texts) => texts.push(text),
            TensorData::Empty => *self.0 = TensorData::Texts(vec![text]),
            TensorData::Numbers(_) => return Err(E::custom("a tensor holds either numbers or texts")),
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> DeserializeSeed<'de> for FlattenVisitor<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for FlattenVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, base64 texts, or arrays of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while array.next_element_seed(FlattenVisitor(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.number(number)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.number(number as f64)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.number(number as f64)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.text(Cow::Owned(text.to_owned()))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        self.text(Cow::Borrowed(text))
    }
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

/// The value of a parameter that is a whole number.
fn count(parameters: &BTreeMap<String, JsonParameter>, name: &str) -> Result<Option<usize>, Problem> {
    match parameters.get(name) {
        None => Ok(None),
        Some(JsonParameter::Number(number)) if (0.0..1e15).contains(number) && number.fract() == 0.0 => {
            Ok(Some(*number as usize))
        }
        Some(_) => Err(invalid(format!("the parameter `{name}` must be a whole number"))),
    }
}

/// The value of a parameter that is a flag.
fn flag(parameters: &BTreeMap<String, JsonParameter>, name: &str) -> Result<Option<bool>, Problem> {
    match parameters.get(name) {
        None => Ok(None),
        Some(JsonParameter::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(invalid(format!("the parameter `{name}` must be true or false"))),
    }
}

/// Parses a body whose JSON has `json_length` bytes, or is all of it.
pub(super) fn parse(
    body: &Bytes,
    json_length: Option<usize>,
    context: RequestContext,
    start: Instant,
) -> Result<(InferRequest, BinaryOutputs), Problem> {
    let length = json_length.unwrap_or(body.len());
    let (json, mut binary) = match body.len().checked_sub(length) {
        Some(_) => (&body[..length], body.slice(length..)),
        None => return Err(invalid(format!("the body has {} bytes, its JSON is said to have {length}", body.len()))),
    };
    let request: JsonRequest<'_> = json_object(json)
        .map_err(|e| Problem::new(Code::InvalidJson, format!("expected an inference request: {e}")))?;
    let mut binary_outputs = BinaryOutputs {
        all: flag(&request.parameters, "binary_data_output")?.unwrap_or(false),
        by_name: HashMap::new(),
    };
    for output in &request.outputs {
        if let Some(as_bytes) = flag(&output.parameters, "binary_data")? {
            binary_outputs.by_name.insert(output.name.clone(), as_bytes);
        }
    }
    let mut inputs = Vec::with_capacity(request.inputs.len().min(4));
    for input in request.inputs {
        let size = count(&input.parameters, "binary_data_size")?;
        let elements = match (size, input.data) {
            (Some(size), None) if size <= binary.len() => Elements::Raw(binary.split_to(size)),
            (Some(size), None) => {
                let left = binary.len();
                return Err(invalid(format!("`binary_data_size` is {size}, but only {left} bytes follow the JSON")));
            }
            (Some(_), Some(_)) => return Err(invalid("an input has either `data` or `binary_data_size`")),
            (None, None) => return Err(invalid("an input has neither `data` nor `binary_data_size`")),
            (None, Some(TensorData::Empty)) => Elements::Raw(Bytes::new()),
            (None, Some(TensorData::Numbers(numbers))) => Elements::Numbers(numbers),
            (None, Some(TensorData::Texts(texts))) => {
                Elements::Texts(texts.iter().map(|text| from_base64(text)).collect())
            }
        };
        inputs.push(InputTensor { name: input.name, datatype: input.datatype, shape: input.shape, elements });
    }
    if !binary.is_empty() {
        return Err(invalid(format!("{} bytes follow the tensors", binary.len())));
    }
    let output = |output: JsonWanted| {
        let classification = count(&output.parameters, "classification")?.unwrap_or(0);
        Ok(RequestedOutput { name: output.name, classification })
    };
    let parameter = |value| match value {
        JsonParameter::Bool(flag) => Parameter::Bool(flag),
        JsonParameter::Number(number) => Parameter::Number(number),
        JsonParameter::Text(text) => Parameter::Text(text),
    };
    let request = InferRequest {
        id: request.id.unwrap_or_default(),
        parameters: request.parameters.into_iter().map(|(name, value)| (name, parameter(value))).collect(),
        outputs: request.outputs.into_iter().map(output).collect::<Result<_, Problem>>()?,
        inputs,
        context,
        start,
    };
    Ok((request, binary_outputs))
}

/// An inference answer of the Open Inference Protocol.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InferResponse")]
pub(in crate::server::http) struct JsonAnswer<'a> {
    model_name: String,
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    outputs: Vec<JsonOutput<'a>>,
}

/// An output tensor.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InferOutput")]
struct JsonOutput<'a> {
    name: &'a str,
    datatype: &'a str,
    /// The images first.
    shape: &'a [i64],
    /// Present if the data follow the JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    /// Flat, in row-major order.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<OutputData>,
}

/// The size of a tensor after the JSON.
#[derive(Serialize, JsonSchema)]
struct BinarySize {
    binary_data_size: usize,
}

/// The elements of an output.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum OutputData {
    Numbers(Vec<f32>),
    Texts(Vec<String>),
}

/// Writes an answer.
pub(super) fn write(response: &InferResponse, binary_outputs: &BinaryOutputs) -> Result<EncodedAnswer, Problem> {
    let mut outputs = Vec::with_capacity(response.outputs.len());
    let mut binary = Vec::new();
    for output in &response.outputs {
        let as_bytes = binary_outputs.by_name.get(&output.name).copied().unwrap_or(binary_outputs.all);
        if as_bytes {
            binary.push(&output.data[..]);
        }
        outputs.push(JsonOutput {
            name: &output.name,
            datatype: output.datatype,
            shape: &output.shape,
            parameters: as_bytes.then_some(BinarySize { binary_data_size: output.data.len() }),
            data: if as_bytes { None } else { Some(data(output)?) },
        });
    }
    let json = JsonAnswer { model_name: response.model.name(), model_version: VERSION, id: &response.id, outputs };
    // Strings and numbers always serialise.
    let mut bytes = serde_json::to_vec(&json).unwrap_or_default();
    let json_length = (!binary.is_empty()).then_some(bytes.len());
    bytes.reserve_exact(binary.iter().map(|data| data.len()).sum());
    binary.into_iter().for_each(|data| bytes.extend_from_slice(data));
    Ok(EncodedAnswer { json_length, bytes })
}

fn data(output: &OutputTensor) -> Result<OutputData, Problem> {
    match output.datatype {
        "FP32" => {
            Ok(OutputData::Numbers(output.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
        }
        "BYTES" => {
            let texts = texts_of(Bytes::copy_from_slice(&output.data), usize::MAX)?;
            Ok(OutputData::Texts(texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()))
        }
        other => Err(invalid(format!("{other} cannot be written as JSON: ask for `binary_data`"))),
    }
}
