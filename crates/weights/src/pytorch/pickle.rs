//! The pickle machine, for the subset that `torch.save` uses: bytes become [`PickleValues`], and no function is called.
//!
//! A pickle is a program that may name and call any Python function, so loading one with Python runs arbitrary code
//! of its author. Here a name outside [`Global::find`] ends reading with an error that contains the name. The allowed
//! names only label values: "calling" `_rebuild_tensor_v2` records a shape and a storage. The opcodes are those of
//! protocols 2 to 5 that Python's pickler writes. All others are refused, in particular those that name classes in
//! other ways.
//!
//! Every length is compared with the remaining bytes, and text is borrowed. The machine's memory is proportional to the
//! pickle's length and bounded by [`limits`].

use std::collections::HashMap;

use super::bad;
use super::limits;
use super::opcode as op;
use super::reduce;
use super::value::{Global, PickleValue, PickleValues, ValueId};
use crate::WeightsError;

/// Reads the pickle `bytes`. Returns all its values and the id of the result.
///
/// # Errors
/// [`WeightsError::Refused`] with the name that is not on the allow-list; [`WeightsError::Format`] for everything else.
pub(super) fn read(bytes: &[u8]) -> Result<(PickleValues<'_>, ValueId), WeightsError> {
    if bytes.len() > limits::BYTES {
        return Err(bad(format!("expected a pickle of at most {} bytes, found {}", limits::BYTES, bytes.len())));
    }
    let mut machine = PickleMachine {
        rest: bytes,
        values: PickleValues::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        tensors: 0,
    };
    for _ in 0..limits::OPCODES {
        if let Some(result) = machine.step()? {
            return Ok((machine.values, result));
        }
    }
    Err(limit_exceeded("opcodes", limits::OPCODES))
}

fn limit_exceeded(what: &str, limit: usize) -> WeightsError {
    bad(format!("expected at most {limit} {what} in the pickle, found more"))
}

/// The state of an interpreter of pickles.
struct PickleMachine<'a> {
    /// The bytes not yet read.
    rest: &'a [u8],
    values: PickleValues<'a>,
    stack: Vec<ValueId>,
    /// Heights of the stack at which a tuple or a batch of items begins.
    marks: Vec<usize>,
    memo: HashMap<u32, ValueId>,
    /// Number of tensors rebuilt.
    tensors: usize,
}

impl<'a> PickleMachine<'a> {
    /// Executes one opcode. Returns the result if the opcode is `STOP`.
    #[expect(clippy::too_many_lines, reason = "a table with one arm per opcode, or group of equivalent opcodes")]
    fn step(&mut self) -> Result<Option<ValueId>, WeightsError> {
        let [code] = self.array()?;
        match code {
            op::STOP => return self.pop().map(Some),
            op::PROTO => match self.array()? {
                [2..=5] => {}
                [other] => return Err(bad(format!("expected pickle protocol 2 to 5, found {other}"))),
            },
            op::FRAME => self.check_frame()?,
            op::MARK => self.push_mark()?,
            op::POP => self.pop().map(|_| ())?,
            op::POP_MARK => self.pop_mark().map(|_| ())?,

            op::NONE | op::NEWTRUE | op::NEWFALSE => self.push(PickleValue::Opaque)?,
            op::BINFLOAT => {
                self.array::<8>()?;
                self.push(PickleValue::Opaque)?;
            }
            op::BININT => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(PickleValue::Int(value.into()))?;
            }
            op::BININT1 => {
                let [value] = self.array()?;
                self.push(PickleValue::Int(value.into()))?;
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(PickleValue::Int(value.into()))?;
            }
            op::LONG1 => {
                let len = self.len_u8()?;
                self.push_long(len)?;
            }
            op::LONG4 => {
                let len = self.len_u32()?;
                self.push_long(len)?;
            }

            op::SHORT_BINUNICODE => {
                let len = self.len_u8()?;
                self.push_text(len)?;
            }
            op::BINUNICODE => {
                let len = self.len_u32()?;
                self.push_text(len)?;
            }
            op::BINUNICODE8 => {
                let len = self.len_u64()?;
                self.push_text(len)?;
            }
            op::SHORT_BINBYTES => {
                let len = self.len_u8()?;
                self.push_bytes(len)?;
            }
            op::BINBYTES => {
                let len = self.len_u32()?;
                self.push_bytes(len)?;
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let len = self.len_u64()?;
                self.push_bytes(len)?;
            }

            op::EMPTY_TUPLE => self.push(PickleValue::Tuple(Vec::new()))?,
            op::EMPTY_LIST | op::EMPTY_SET => self.push(PickleValue::List(Vec::new()))?,
            op::EMPTY_DICT => self.push(PickleValue::Dict(Vec::new()))?,
            op::TUPLE1 => self.push_tuple::<1>()?,
            op::TUPLE2 => self.push_tuple::<2>()?,
            op::TUPLE3 => self.push_tuple::<3>()?,
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(PickleValue::Tuple(items))?;
            }
            op::FROZENSET => {
                let items = self.pop_mark()?;
                self.push(PickleValue::List(items))?;
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            op::APPENDS | op::ADDITEMS => {
                let items = self.pop_mark()?;
                self.extend_list(&items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }

            op::BINPUT => {
                let [slot] = self.array()?;
                self.memoize(slot.into())?;
            }
            op::LONG_BINPUT => {
                let slot = u32::from_le_bytes(self.array()?);
                self.memoize(slot)?;
            }
            op::MEMOIZE => {
                let slot =
                    u32::try_from(self.memo.len()).map_err(|_| limit_exceeded("remembered values", limits::MEMO))?;
                self.memoize(slot)?;
            }
            op::BINGET => {
                let [slot] = self.array()?;
                self.recall(slot.into())?;
            }
            op::LONG_BINGET => {
                let slot = u32::from_le_bytes(self.array()?);
                self.recall(slot)?;
            }

            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(module, name)?;
            }
            op::STACK_GLOBAL => self.push_global_from_stack()?,
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = reduce::storage_reference(&self.values, id)?;
                self.push(PickleValue::Storage(storage))?;
            }
            op::REDUCE | op::NEWOBJ => self.call()?,
            op::BUILD => self.drop_attributes()?,
            other => return Err(bad(format!("expected an opcode of pickle protocol 2 to 5, found {other:#04x}"))),
        }
        Ok(None)
    }

    // The input.

    fn truncated(&self, expected: usize) -> WeightsError {
        bad(format!("expected {expected} more bytes in the pickle, found {}", self.rest.len()))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WeightsError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.truncated(len))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.truncated(N))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A length of one byte.
    fn len_u8(&mut self) -> Result<usize, WeightsError> {
        let [len] = self.array()?;
        Ok(len.into())
    }

    /// A length of four bytes.
    fn len_u32(&mut self) -> Result<usize, WeightsError> {
        let len = u32::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| self.truncated(usize::MAX))
    }

    /// A length of eight bytes.
    fn len_u64(&mut self) -> Result<usize, WeightsError> {
        let len = u64::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| self.truncated(usize::MAX))
    }

    /// Reads the length of a frame, which must not pass the end. Frames have no other meaning here.
    fn check_frame(&mut self) -> Result<(), WeightsError> {
        let len = self.len_u64()?;
        if len > self.rest.len() { Err(self.truncated(len)) } else { Ok(()) }
    }

    /// Text up to the next line feed.
    fn line(&mut self) -> Result<&'a str, WeightsError> {
        let line_feed = self.rest.iter().position(|byte| *byte == b'\n');
        let len = line_feed.ok_or_else(|| self.truncated(self.rest.len() + 1))?;
        let text = utf8(self.take(len)?)?;
        self.take(1)?;
        Ok(text)
    }

    // Values from the input.

    /// Pushes a text of `len` bytes, borrowed.
    fn push_text(&mut self, len: usize) -> Result<(), WeightsError> {
        let text = utf8(self.take(len)?)?;
        self.push(PickleValue::Str(text))
    }

    /// Pushes a value for `len` bytes, which are skipped: weights do not consist of them.
    fn push_bytes(&mut self, len: usize) -> Result<(), WeightsError> {
        self.take(len)?;
        self.push(PickleValue::Opaque)
    }

    /// Pushes a little-endian integer of `len` bytes in two's complement.
    fn push_long(&mut self, len: usize) -> Result<(), WeightsError> {
        let bytes = self.take(len)?;
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        let value = match wide.get_mut(..len) {
            Some(low) => {
                low.copy_from_slice(bytes);
                PickleValue::Int(i64::from_le_bytes(wide))
            }
            None => PickleValue::Opaque,
        };
        self.push(value)
    }

    // The stack and the memo.

    /// Adds a value to the list and pushes its id.
    fn push(&mut self, value: PickleValue<'a>) -> Result<(), WeightsError> {
        let id = self.values.add(value, limits::VALUES).ok_or_else(|| limit_exceeded("values", limits::VALUES))?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: ValueId) -> Result<(), WeightsError> {
        if self.stack.len() == limits::STACK {
            return Err(limit_exceeded("values on the stack", limits::STACK));
        }
        self.stack.push(id);
        Ok(())
    }

    fn push_mark(&mut self) -> Result<(), WeightsError> {
        if self.marks.len() == limits::DEPTH {
            return Err(limit_exceeded("open marks", limits::DEPTH));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The topmost value above the last mark.
    fn top(&self) -> Result<ValueId, WeightsError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[ValueId]>::last);
        top.copied().ok_or_else(|| bad("expected a value on the pickle's stack, found none"))
    }

    /// Takes the topmost value above the last mark off the stack.
    fn pop(&mut self) -> Result<ValueId, WeightsError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Takes the last mark and everything above it off the stack.
    fn pop_mark(&mut self) -> Result<Vec<ValueId>, WeightsError> {
        let floor = self.marks.pop().ok_or_else(|| bad("expected a mark on the pickle's stack, found none"))?;
        Ok(self.stack.split_off(floor))
    }

    /// Replaces the `N` topmost values by a tuple of them.
    fn push_tuple<const N: usize>(&mut self) -> Result<(), WeightsError> {
        let mut items = Vec::with_capacity(N);
        for _ in 0..N {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(PickleValue::Tuple(items))
    }

    /// Adds `items` to the list on top.
    fn extend_list(&mut self, items: &[ValueId]) -> Result<(), WeightsError> {
        let list = self.top()?;
        match self.values.get_mut(list) {
            PickleValue::List(list) => list.extend_from_slice(items),
            PickleValue::Opaque => {}
            other => return Err(bad(format!("expected a list to add to in the pickle, found {}", other.kind()))),
        }
        Ok(())
    }

    /// Adds `items`, keys and values in turn, to the dict on top.
    fn extend_dict(&mut self, items: &[ValueId]) -> Result<(), WeightsError> {
        let (pairs, []) = items.as_chunks() else {
            return Err(bad("expected as many values as keys for a dict of the pickle, found one more key"));
        };
        let dict = self.top()?;
        match self.values.get_mut(dict) {
            PickleValue::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            PickleValue::Opaque => {}
            other => return Err(bad(format!("expected a dict to add to in the pickle, found {}", other.kind()))),
        }
        Ok(())
    }

    /// Stores the value on top in the memo.
    fn memoize(&mut self, slot: u32) -> Result<(), WeightsError> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        if self.memo.len() > limits::MEMO { Err(limit_exceeded("remembered values", limits::MEMO)) } else { Ok(()) }
    }

    /// Pushes a value from the memo.
    fn recall(&mut self, slot: u32) -> Result<(), WeightsError> {
        let id = self.memo.get(&slot).copied();
        self.push_id(id.ok_or_else(|| bad(format!("expected a remembered value {slot} in the pickle, found none")))?)
    }

    // Names and calls.

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), WeightsError> {
        let global = Global::find(module, name).ok_or_else(|| WeightsError::refused(module, name))?;
        self.push(PickleValue::Global(global))
    }

    /// Replaces the texts of a module and a name by what they refer to.
    fn push_global_from_stack(&mut self) -> Result<(), WeightsError> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (self.values.get(module), self.values.get(name)) {
            (&PickleValue::Str(module), &PickleValue::Str(name)) => self.push_global(module, name),
            _ => Err(bad("expected the name of a class as two texts in the pickle, found other values")),
        }
    }

    /// Replaces a callee and its arguments by the result that [`reduce::call`] finds without a call.
    fn call(&mut self) -> Result<(), WeightsError> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        match reduce::call(&self.values, callee, arguments)? {
            reduce::CallResult::Argument(id) => self.push_id(id),
            reduce::CallResult::New(value) => {
                self.tensors += usize::from(matches!(value, PickleValue::Tensor(_)));
                if self.tensors > limits::TENSORS {
                    return Err(limit_exceeded("tensors", limits::TENSORS));
                }
                self.push(value)
            }
        }
    }

    /// Drops the attributes on top: `_metadata` of a state dict, fields of a namespace. None of them is a weight.
    fn drop_attributes(&mut self) -> Result<(), WeightsError> {
        self.pop()?;
        let target = self.top()?;
        match self.values.get(target) {
            PickleValue::Dict(_) | PickleValue::Opaque => Ok(()),
            other => Err(bad(format!("expected attributes for a dict, found them for {}", other.kind()))),
        }
    }
}

/// `bytes` as text of at most [`limits::TEXT`] bytes.
fn utf8(bytes: &[u8]) -> Result<&str, WeightsError> {
    if bytes.len() > limits::TEXT {
        return Err(limit_exceeded("bytes of one text", limits::TEXT));
    }
    str::from_utf8(bytes).map_err(|_| bad("expected text in UTF-8 in the pickle, found other bytes"))
}
