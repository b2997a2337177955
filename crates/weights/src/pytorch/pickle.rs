//! The pickle machine, as far as `torch.save` uses it: bytes become [`Values`], and nothing is ever called.
//!
//! A pickle is a program that may name any function of Python's and call it, so loading one with Python runs what its
//! author liked. Here a name outside [`Global::find`] ends reading with an error that says the name, and the names inside
//! it only label values: "calling" `_rebuild_tensor_v2` notes down a shape and a storage. Opcodes are those of protocol 2
//! to 5 that Python's pickler writes; the rest is refused, above all those that name classes in other ways.
//!
//! Every length is held against the bytes that are left; text is borrowed; what a pickle can make this machine hold is
//! proportional to its own length and bounded by [`limits`].

use std::collections::HashMap;

use super::bad;
use super::limits;
use super::opcode as op;
use super::reduce;
use super::value::{Global, Id, Value, Values};
use crate::WeightsError;

/// Reads the pickle `bytes`; returns its values and which of them is the result.
///
/// # Errors
/// [`WeightsError::Refused`] with the name that is not on the allow-list; [`WeightsError::Format`] for everything else.
pub(super) fn read(bytes: &[u8]) -> Result<(Values<'_>, Id), WeightsError> {
    if bytes.len() > limits::BYTES {
        return Err(bad(format!("expected a pickle of at most {} bytes, found {}", limits::BYTES, bytes.len())));
    }
    let mut machine = Machine {
        rest: bytes,
        values: Values::default(),
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
    Err(over("opcodes", limits::OPCODES))
}

fn over(what: &str, limit: usize) -> WeightsError {
    bad(format!("expected at most {limit} {what} in the pickle, found more"))
}

struct Machine<'a> {
    rest: &'a [u8],
    values: Values<'a>,
    stack: Vec<Id>,
    /// Heights of the stack at which a tuple or a batch of items began.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    tensors: usize,
}

impl<'a> Machine<'a> {
    /// Executes one opcode; returns the result once it is `STOP`.
    fn step(&mut self) -> Result<Option<Id>, WeightsError> {
        let [code] = self.array()?;
        match code {
            op::STOP => return self.pop().map(Some),
            op::PROTO => match self.array()? {
                [2..=5] => {}
                [other] => return Err(bad(format!("expected pickle protocol 2 to 5, found {other}"))),
            },
            op::FRAME => {
                let len = self.long_len()?;
                if len > self.rest.len() {
                    return Err(self.cut(len));
                }
            }
            op::MARK => {
                if self.marks.len() == limits::DEPTH {
                    return Err(over("open marks", limits::DEPTH));
                }
                self.marks.push(self.stack.len());
            }
            op::POP => self.pop().map(|_| ())?,
            op::POP_MARK => self.pop_mark().map(|_| ())?,

            op::NONE | op::NEWTRUE | op::NEWFALSE => self.push(Value::Opaque)?,
            op::BINFLOAT => {
                self.array::<8>()?;
                self.push(Value::Opaque)?;
            }
            op::BININT => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            op::BININT1 => {
                let [value] = self.array()?;
                self.push(Value::Int(value.into()))?;
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()))?;
            }
            op::LONG1 => {
                let len = self.byte_len()?;
                self.long(len)?;
            }
            op::LONG4 => {
                let len = self.len()?;
                self.long(len)?;
            }

            op::SHORT_BINUNICODE => {
                let len = self.byte_len()?;
                self.text(len)?;
            }
            op::BINUNICODE => {
                let len = self.len()?;
                self.text(len)?;
            }
            op::BINUNICODE8 => {
                let len = self.long_len()?;
                self.text(len)?;
            }
            op::SHORT_BINBYTES => {
                let len = self.byte_len()?;
                self.skip(len)?;
            }
            op::BINBYTES => {
                let len = self.len()?;
                self.skip(len)?;
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let len = self.long_len()?;
                self.skip(len)?;
            }

            op::EMPTY_TUPLE => self.push(Value::Tuple(Vec::new()))?,
            op::EMPTY_LIST | op::EMPTY_SET => self.push(Value::List(Vec::new()))?,
            op::EMPTY_DICT => self.push(Value::Dict(Vec::new()))?,
            op::TUPLE1 => self.tuple::<1>()?,
            op::TUPLE2 => self.tuple::<2>()?,
            op::TUPLE3 => self.tuple::<3>()?,
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            op::FROZENSET => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            op::APPENDS | op::ADDITEMS => {
                let items = self.pop_mark()?;
                self.extend(&items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }

            op::BINPUT => {
                let [slot] = self.array()?;
                self.remember(slot.into())?;
            }
            op::LONG_BINPUT => {
                let slot = u32::from_le_bytes(self.array()?);
                self.remember(slot)?;
            }
            op::MEMOIZE => {
                let slot = u32::try_from(self.memo.len()).map_err(|_| over("remembered values", limits::MEMO))?;
                self.remember(slot)?;
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
                self.global(module, name)?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.values.get(module), self.values.get(name)) {
                    (&Value::Str(module), &Value::Str(name)) => self.global(module, name)?,
                    _ => {
                        return Err(bad("expected the name of a class as two texts in the pickle, found other values"));
                    }
                }
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = reduce::storage(&self.values, id)?;
                self.push(Value::Storage(storage))?;
            }
            op::REDUCE | op::NEWOBJ => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                match reduce::call(&self.values, callee, arguments)? {
                    reduce::Made::Old(id) => self.push_id(id)?,
                    reduce::Made::New(value) => {
                        self.tensors += usize::from(matches!(value, Value::Tensor(_)));
                        if self.tensors > limits::TENSORS {
                            return Err(over("tensors", limits::TENSORS));
                        }
                        self.push(value)?;
                    }
                }
            }
            op::BUILD => {
                // Attributes: `_metadata` of a state dict, fields of a namespace. None of them is a weight.
                self.pop()?;
                let target = self.top()?;
                match self.values.get(target) {
                    Value::Dict(_) | Value::Opaque => {}
                    other => {
                        return Err(bad(format!("expected attributes for a dict, found them for {}", other.kind())));
                    }
                }
            }
            other => return Err(bad(format!("expected an opcode of pickle protocol 2 to 5, found {other:#04x}"))),
        }
        Ok(None)
    }

    // The input.

    fn cut(&self, wanted: usize) -> WeightsError {
        bad(format!("expected {wanted} more bytes in the pickle, found {}", self.rest.len()))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WeightsError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.cut(len))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.cut(N))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte_len(&mut self) -> Result<usize, WeightsError> {
        let [len] = self.array()?;
        Ok(len.into())
    }

    fn len(&mut self) -> Result<usize, WeightsError> {
        let len = u32::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| self.cut(usize::MAX))
    }

    fn long_len(&mut self) -> Result<usize, WeightsError> {
        let len = u64::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| self.cut(usize::MAX))
    }

    /// Text up to the next line feed.
    fn line(&mut self) -> Result<&'a str, WeightsError> {
        let len = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.cut(self.rest.len() + 1))?;
        let line = utf8(self.take(len)?)?;
        self.take(1)?;
        Ok(line)
    }

    /// A text of `len` bytes, borrowed.
    fn text(&mut self, len: usize) -> Result<(), WeightsError> {
        let text = utf8(self.take(len)?)?;
        self.push(Value::Str(text))
    }

    /// Bytes that no weight is made of.
    fn skip(&mut self, len: usize) -> Result<(), WeightsError> {
        self.take(len)?;
        self.push(Value::Opaque)
    }

    /// A little-endian integer in two's complement.
    fn long(&mut self, len: usize) -> Result<(), WeightsError> {
        let bytes = self.take(len)?;
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        let value = match wide.get_mut(..len) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            None => Value::Opaque,
        };
        self.push(value)
    }

    // The stack and the memo.

    fn push(&mut self, value: Value<'a>) -> Result<(), WeightsError> {
        let id = self.values.add(value, limits::VALUES).ok_or_else(|| over("values", limits::VALUES))?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), WeightsError> {
        if self.stack.len() == limits::STACK {
            return Err(over("values on the stack", limits::STACK));
        }
        self.stack.push(id);
        Ok(())
    }

    /// The topmost value above the last mark.
    fn top(&self) -> Result<Id, WeightsError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.get(floor..).and_then(<[Id]>::last);
        top.copied().ok_or_else(|| bad("expected a value on the pickle's stack, found none"))
    }

    fn pop(&mut self) -> Result<Id, WeightsError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Everything above the last mark, and the mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, WeightsError> {
        let floor = self.marks.pop().ok_or_else(|| bad("expected a mark on the pickle's stack, found none"))?;
        Ok(self.stack.split_off(floor))
    }

    fn tuple<const N: usize>(&mut self) -> Result<(), WeightsError> {
        let mut items = Vec::with_capacity(N);
        for _ in 0..N {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), WeightsError> {
        let list = self.top()?;
        match self.values.get_mut(list) {
            Value::List(list) => list.extend_from_slice(items),
            Value::Opaque => {}
            other => return Err(bad(format!("expected a list to add to in the pickle, found {}", other.kind()))),
        }
        Ok(())
    }

    /// Adds `items`, keys and values in turn, to the dict on top.
    fn set(&mut self, items: &[Id]) -> Result<(), WeightsError> {
        let (pairs, []) = items.as_chunks() else {
            return Err(bad("expected as many values as keys for a dict of the pickle, found one more key"));
        };
        let dict = self.top()?;
        match self.values.get_mut(dict) {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Value::Opaque => {}
            other => return Err(bad(format!("expected a dict to add to in the pickle, found {}", other.kind()))),
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Result<(), WeightsError> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        if self.memo.len() > limits::MEMO { Err(over("remembered values", limits::MEMO)) } else { Ok(()) }
    }

    fn recall(&mut self, slot: u32) -> Result<(), WeightsError> {
        let id = self.memo.get(&slot).copied();
        self.push_id(id.ok_or_else(|| bad(format!("expected a remembered value {slot} in the pickle, found none")))?)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), WeightsError> {
        let global = Global::find(module, name).ok_or_else(|| WeightsError::refused(module, name))?;
        self.push(Value::Global(global))
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, WeightsError> {
    if bytes.len() > limits::TEXT {
        return Err(over("bytes of one text", limits::TEXT));
    }
    str::from_utf8(bytes).map_err(|_| bad("expected text in UTF-8 in the pickle, found other bytes"))
}
