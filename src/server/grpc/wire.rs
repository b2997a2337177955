//! Checks protobuf messages while their bytes arrive, before they are decoded.
//!
//! Two bytes on the wire (an empty sub-message) become a struct of hundreds of bytes in memory, so a limit on the
//! size of a message does not limit the memory that decoding takes. A [`Walker`] reads the wire format with the help of
//! the message's descriptor and counts what decoding would allocate. It accepts pieces of any length and stores none.

use std::collections::HashMap;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

/// Fields of every message type, by the type's index.
#[derive(Debug, Default)]
pub(super) struct Schema {
    messages: Vec<HashMap<u32, Field>>,
    by_name: HashMap<String, usize>,
}

/// Type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    kind: FieldKind,
    repeated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldKind {
    /// A number: bytes in memory, and bytes on the wire (`None` for a varint).
    Number { memory: usize, fixed: Option<usize> },
    /// Text, which decoding copies out of the message.
    String,
    /// Bytes, which decoding does not copy.
    Bytes,
    /// A message, by the index of its type.
    Message(usize),
}

/// Limits on the contents of a message, including all nested messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageLimits {
    /// Maximum number of elements of repeated `bytes` fields (images, tensors).
    pub(super) blobs: usize,
    /// Maximum number of elements of repeated messages and strings, and of map entries.
    pub(super) items: usize,
    /// Maximum number of elements of repeated number fields.
    pub(super) numbers: usize,
    /// Maximum number of fields that are not in the schema. A newer client may send a few.
    pub(super) unknown: usize,
    /// Maximum number of fields of any kind, except elements of repeated numbers.
    pub(super) fields: usize,
}

/// Maximum nesting depth of messages. The services' types are not recursive and stay far below it.
const MAX_DEPTH: usize = 16;

/// Upper bound on the memory of one element of a repeated message or string, or of one map entry, bytes. It includes
/// what a growing list reserves.
const ITEM_BYTES: usize = 1024;

/// Reason for the rejection of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("the message is not valid protobuf")]
    Malformed,
    #[error("the message uses groups, which proto3 does not have")]
    Group,
    #[error("the message nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the message holds more than {0} images or tensors; send several requests")]
    Blobs(usize),
    #[error("the message holds more than {0} elements, texts and parameters")]
    Items(usize),
    #[error("the message holds more than {0} numbers; send tensors as raw contents")]
    Numbers(usize),
    #[error("the message holds more than {0} fields that the service does not know")]
    Unknown(usize),
    #[error("the message holds more than {0} fields")]
    Fields(usize),
}

impl Schema {
    /// Collects the message types of the given files.
    pub(super) fn of(sets: &[FileDescriptorSet]) -> Self {
        let mut messages: Vec<(String, &DescriptorProto)> = Vec::new();
        for file in sets.iter().flat_map(|set| &set.file) {
            let package = if file.package().is_empty() { String::new() } else { format!(".{}", file.package()) };
            collect_messages(&package, &file.message_type, &mut messages);
        }
        let by_name: HashMap<String, usize> =
            messages.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
        let convert = |field: &prost_types::FieldDescriptorProto| {
            let number = |memory, fixed| FieldKind::Number { memory, fixed };
            let kind = match field.r#type() {
                Type::Bool => number(1, None),
                Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => number(4, None),
                Type::Int64 | Type::Uint64 | Type::Sint64 => number(8, None),
                Type::Float | Type::Fixed32 | Type::Sfixed32 => number(4, Some(4)),
                Type::Double | Type::Fixed64 | Type::Sfixed64 => number(8, Some(8)),
                Type::String => FieldKind::String,
                Type::Bytes => FieldKind::Bytes,
                // Always present: the compiler of `proto/` has resolved all names.
                Type::Message | Type::Group => FieldKind::Message(*by_name.get(field.type_name())?),
            };
            Some((u32::try_from(field.number()).ok()?, Field { kind, repeated: field.label() == Label::Repeated }))
        };
        let messages = messages.iter().map(|(_, message)| message.field.iter().filter_map(convert).collect()).collect();
        Self { messages, by_name }
    }

    /// Index of the message type with the given full name, which starts with a dot.
    pub(super) fn message(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

/// Appends the messages and all nested ones to `found`, with their full names.
fn collect_messages<'a>(scope: &str, messages: &'a [DescriptorProto], found: &mut Vec<(String, &'a DescriptorProto)>) {
    for message in messages {
        let name = format!("{scope}.{}", message.name());
        collect_messages(&name, &message.nested_type, found);
        found.push((name, message));
    }
}

/// Checks one message while it arrives.
#[derive(Debug)]
pub(super) struct Walker {
    limits: MessageLimits,
    /// Messages that are not complete, outermost first: type index, and bytes still to come.
    open: Vec<(usize, usize)>,
    expected: Expected,
    /// The varint being read: its value so far, and its number of bytes so far.
    varint: (u64, u32),
    counts: MessageCounts,
}

/// Counts of the contents received, to compare with [`MessageLimits`].
#[derive(Clone, Copy, Debug, Default)]
struct MessageCounts {
    blobs: usize,
    items: usize,
    numbers: usize,
    unknown: usize,
    fields: usize,
    /// Memory that decoding takes in addition to the message's own bytes, bytes.
    memory: usize,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The key of a field.
    Key,
    /// A varint whose value is not used.
    Varint,
    /// The length of a field's contents.
    Length(Option<Field>),
    /// Contents that are skipped: bytes still to come.
    Skip(usize),
    /// Packed varints: bytes still to come, and bytes in memory of each number.
    Packed { left: usize, memory: usize },
}

impl Walker {
    /// Creates a walker for a message of type `message` and length `bytes`.
    pub(super) fn new(message: usize, bytes: usize, limits: MessageLimits) -> Self {
        let mut walker = Self {
            limits,
            open: Vec::new(),
            expected: Expected::Key,
            varint: (0, 0),
            counts: MessageCounts::default(),
        };
        walker.open.push((message, bytes));
        walker
    }

    /// Memory that decoding takes in addition to the bytes received, bytes.
    pub(super) fn memory(&self) -> usize {
        self.counts.memory
    }

    /// Reads the next bytes of the message, at most as many as are still to come.
    ///
    /// # Errors
    /// The message is invalid or beyond a limit, and must not be decoded.
    pub(super) fn feed(&mut self, schema: &Schema, mut bytes: &[u8]) -> Result<(), WireError> {
        while !bytes.is_empty() {
            match self.expected {
                Expected::Skip(left) => {
                    let part = left.min(bytes.len());
                    bytes = &bytes[part..];
                    self.expected = if part == left { Expected::Key } else { Expected::Skip(left - part) };
                    self.consume(part)?;
                }
                Expected::Packed { left, memory } => {
                    let part = left.min(bytes.len());
                    // The last byte of a varint has its highest bit clear.
                    let numbers = bytes[..part].iter().filter(|byte| **byte < 0x80).count();
                    bytes = &bytes[part..];
                    self.numbers(numbers, memory)?;
                    let rest = Expected::Packed { left: left - part, memory };
                    self.expected = if part == left { Expected::Key } else { rest };
                    self.consume(part)?;
                }
                Expected::Key | Expected::Varint | Expected::Length(_) => {
                    let byte = bytes[0];
                    bytes = &bytes[1..];
                    self.consume(1)?;
                    let (value, length) = &mut self.varint;
                    *value |= u64::from(byte & 0x7F).checked_shl(7 * *length).unwrap_or(0);
                    *length += 1;
                    if byte >= 0x80 {
                        if *length == 10 {
                            return Err(WireError::Malformed);
                        }
                        continue;
                    }
                    let value = std::mem::take(&mut self.varint).0;
                    self.expected = match self.expected {
                        Expected::Key => self.key(schema, value)?,
                        Expected::Length(field) => {
                            self.begin(field, usize::try_from(value).map_err(|_| WireError::Malformed)?)?
                        }
                        _ => Expected::Key,
                    };
                }
            }
            self.close()?;
        }
        Ok(())
    }

    /// Subtracts bytes from the innermost message. Its end may not be passed.
    fn consume(&mut self, bytes: usize) -> Result<(), WireError> {
        let (_, left) = self.open.last_mut().ok_or(WireError::Malformed)?;
        *left = left.checked_sub(bytes).ok_or(WireError::Malformed)?;
        Ok(())
    }

    /// Removes the complete messages from the stack.
    fn close(&mut self) -> Result<(), WireError> {
        while self.open.len() > 1 && self.open.last().is_some_and(|(_, left)| *left == 0) {
            if !matches!(self.expected, Expected::Key) || self.varint.1 > 0 {
                return Err(WireError::Malformed);
            }
            self.open.pop();
        }
        Ok(())
    }

    /// Handles the key of a field.
    fn key(&mut self, schema: &Schema, key: u64) -> Result<Expected, WireError> {
        let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0).ok_or(WireError::Malformed)?;
        let (message, _) = self.open.last().ok_or(WireError::Malformed)?;
        let field = schema.messages.get(*message).and_then(|fields| fields.get(&number)).copied();
        match field {
            Some(Field { kind: FieldKind::Number { memory, .. }, repeated: true }) if key & 7 != 2 => {
                self.numbers(1, memory)?;
            }
            _ => add_within(&mut self.counts.fields, 1, self.limits.fields, WireError::Fields)?,
        }
        if field.is_none() {
            add_within(&mut self.counts.unknown, 1, self.limits.unknown, WireError::Unknown)?;
        }
        match key & 7 {
            0 => Ok(Expected::Varint),
            1 => Ok(Expected::Skip(8)),
            2 => Ok(Expected::Length(field)),
            3 | 4 => Err(WireError::Group),
            5 => Ok(Expected::Skip(4)),
            _ => Err(WireError::Malformed),
        }
    }

    /// Handles the length of a field's contents. `None` is a field that is not in the schema.
    fn begin(&mut self, field: Option<Field>, length: usize) -> Result<Expected, WireError> {
        let left = self.open.last().map_or(0, |(_, left)| *left);
        if length > left {
            return Err(WireError::Malformed);
        }
        let Some(Field { kind, repeated }) = field else { return Ok(skip(length)) };
        match kind {
            FieldKind::Bytes if repeated => {
                add_within(&mut self.counts.blobs, 1, self.limits.blobs, WireError::Blobs)?;
                self.counts.memory += 2 * size_of::<bytes::Bytes>();
            }
            FieldKind::Bytes => {}
            FieldKind::String => {
                if repeated {
                    add_within(&mut self.counts.items, 1, self.limits.items, WireError::Items)?;
                }
                self.counts.memory += length + if repeated { ITEM_BYTES } else { 0 };
            }
            FieldKind::Number { memory, fixed: Some(width) } => {
                self.numbers(length / width, memory)?;
            }
            FieldKind::Number { memory, fixed: None } if length > 0 => {
                return Ok(Expected::Packed { left: length, memory });
            }
            FieldKind::Number { .. } => {}
            FieldKind::Message(message) => {
                if repeated {
                    add_within(&mut self.counts.items, 1, self.limits.items, WireError::Items)?;
                }
                self.counts.memory += ITEM_BYTES;
                if self.open.len() == MAX_DEPTH {
                    return Err(WireError::TooDeep);
                }
                self.consume(length)?;
                self.open.push((message, length));
                return Ok(Expected::Key);
            }
        }
        Ok(skip(length))
    }

    /// Counts elements of a repeated number field.
    fn numbers(&mut self, numbers: usize, memory: usize) -> Result<(), WireError> {
        add_within(&mut self.counts.numbers, numbers, self.limits.numbers, WireError::Numbers)?;
        // A growing list may reserve twice its length.
        self.counts.memory += 2 * numbers * memory;
        Ok(())
    }
}

fn skip(length: usize) -> Expected {
    if length == 0 { Expected::Key } else { Expected::Skip(length) }
}

fn add_within(count: &mut usize, more: usize, max: usize, error: fn(usize) -> WireError) -> Result<(), WireError> {
    *count += more;
    if *count > max { Err(error(max)) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use ghostserve_proto::inference::infer_parameter::ParameterChoice;
    use ghostserve_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use ghostserve_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};
    use ghostserve_proto::{DESCRIPTORS, v1};

    const LIMITS: MessageLimits = MessageLimits { blobs: 8, items: 16, numbers: 1000, unknown: 4, fields: 100 };

    fn served_schema() -> Schema {
        Schema::of(&[FileDescriptorSet::decode(DESCRIPTORS).unwrap()])
    }

    /// Walks a message in pieces of a given length. Returns the memory that was counted.
    fn walk(name: &str, message: &[u8], limits: MessageLimits, piece: usize) -> Result<usize, WireError> {
        let schema = served_schema();
        let mut walker = Walker::new(schema.message(name).unwrap(), message.len(), limits);
        message.chunks(piece.max(1)).try_for_each(|piece| walker.feed(&schema, piece))?;
        Ok(walker.memory())
    }

    fn infer(message: &[u8]) -> Result<usize, WireError> {
        walk(".inference.ModelInferRequest", message, LIMITS, usize::MAX)
    }

    #[test]
    fn millions_of_empty_messages_are_refused_after_a_few() {
        for (field, expected) in [
            (0x2a, WireError::Items(LIMITS.items)),
            (0x32, WireError::Items(LIMITS.items)),
            (0x22, WireError::Items(LIMITS.items)),
            (0x3a, WireError::Blobs(LIMITS.blobs)),
            // A name that is repeated many times takes time, but no memory.
            (0x0a, WireError::Fields(LIMITS.fields)),
        ] {
            assert_eq!(infer(&[field, 0].repeat(1_000_000)), Err(expected), "{field:x}");
        }
        let images = [0x12, 0].repeat(1_000_000);
        assert_eq!(walk(".ghostserve.v1.ClassifyRequest", &images, LIMITS, 99), Err(WireError::Blobs(8)));
        let levels = [0x1a, 0].repeat(1_000_000);
        assert_eq!(walk(".ghostserve.v1.ExtractFeaturesRequest", &levels, LIMITS, 99), Err(WireError::Items(16)));
    }

    #[test]
    fn numbers_are_counted_packed_or_not() {
        let packed = |numbers: usize| {
            let contents = InferTensorContents { uint_contents: vec![1; numbers], ..InferTensorContents::default() };
            let input = InferInputTensor { contents: Some(contents), ..InferInputTensor::default() };
            ModelInferRequest { inputs: vec![input], ..ModelInferRequest::default() }.encode_to_vec()
        };
        assert_eq!(infer(&packed(1000)), Ok(2 * ITEM_BYTES + 2 * 1000 * 4));
        assert_eq!(infer(&packed(1001)), Err(WireError::Numbers(1000)));
        // Field 3 of the tensor in field 5: its shape, with one key for each element.
        let shape = [0x18, 1].repeat(1001);
        let mut message = vec![0x2a];
        prost::encoding::encode_varint(shape.len() as u64, &mut message);
        message.extend(shape);
        assert_eq!(infer(&message), Err(WireError::Numbers(1000)));
    }

    #[test]
    fn the_number_of_unknown_fields_is_limited() {
        assert_eq!(infer(&[0xA0, 0x06, 1].repeat(4)), Ok(0));
        assert_eq!(infer(&[0xA0, 0x06, 1].repeat(5)), Err(WireError::Unknown(4)));
        assert_eq!(infer(&[0xA3, 0x06]), Err(WireError::Group));
    }

    #[test]
    fn lengths_past_the_end_are_malformed() {
        // A sub-message, and one nested in it, that are longer than the enclosing message.
        for message in [&[0x2a, 5, 0][..], &[0x2a, 2, 0x0a, 9], &[0x2a, 2, 0x0a, 0x80, 0], &[0, 0], &[0x2f, 0]] {
            assert_eq!(infer(message), Err(WireError::Malformed), "{message:x?}");
        }
        let endless = [0xFF; 11];
        assert_eq!(infer(&endless), Err(WireError::Malformed));
    }

    #[test]
    fn structs_are_not_larger_than_the_memory_counted_for_them() {
        let reserved = 2;
        assert!(reserved * size_of::<InferInputTensor>() <= ITEM_BYTES);
        assert!(reserved * size_of::<InferRequestedOutputTensor>() <= ITEM_BYTES);
        assert!(reserved * 2 * (size_of::<String>() + size_of::<InferParameter>()) <= ITEM_BYTES);
        assert!(reserved * size_of::<v1::ClassifyRequest>() <= ITEM_BYTES);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Messages within the limits pass, whatever the length of the pieces.
        #[test]
        fn messages_within_the_limits_pass(
            images in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            shape in prop::collection::vec(any::<i64>(), 0..5),
            numbers in prop::collection::vec(any::<u32>(), 0..200),
            floats in prop::collection::vec(any::<f32>(), 0..200),
            name in ".{0,20}",
            piece in 1usize..400,
        ) {
            let contents = InferTensorContents {
                uint_contents: numbers,
                fp32_contents: floats,
                ..InferTensorContents::default()
            };
            let parameter = InferParameter { parameter_choice: Some(ParameterChoice::DoubleParam(0.5)) };
            let input = InferInputTensor {
                name: name.clone(),
                datatype: "FP32".to_owned(),
                shape,
                parameters: [(name.clone(), parameter)].into(),
                contents: Some(contents),
            };
            let request = ModelInferRequest {
                model_name: name,
                inputs: vec![input.clone(), input],
                raw_input_contents: images.into_iter().map(Bytes::from).collect(),
                ..ModelInferRequest::default()
            };
            let walked = walk(".inference.ModelInferRequest", &request.encode_to_vec(), LIMITS, piece);
            prop_assert!(walked.is_ok(), "{walked:?}");
        }

        /// The result for random bytes does not depend on the pieces, and decoding an accepted message does not panic.
        #[test]
        fn random_bytes_do_not_panic(message in prop::collection::vec(any::<u8>(), 0..200), piece in 1usize..20) {
            let walked = infer(&message);
            prop_assert_eq!(walked, walk(".inference.ModelInferRequest", &message, LIMITS, piece));
            if walked.is_err() {
                return Ok(());
            }
            let _ = ModelInferRequest::decode(&message[..]);
        }
    }
}
