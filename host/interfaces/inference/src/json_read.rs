//! Reads tensors out of a JSON document as it goes by: nothing is held of it but the elements. A document as a tree of values takes
//! forty times its bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use half::{bf16, f16};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::tensor::{MAX_RANK, Strings, shown};
use crate::{DataType, InferError, Tensor, TensorInfo};

/// One tensor for each of these inputs, read at its JSON Pointer.
pub(crate) fn read(
    inputs: Vec<(&TensorInfo, String)>,
    data: &[u8],
) -> Result<Vec<Tensor>, InferError> {
    let mut readers: Vec<Reader<'_>> = inputs
        .into_iter()
        .map(|(info, pointer)| Reader::new(info, pointer))
        .collect();
    let mut left: Vec<usize> = (0..readers.len()).collect();
    loop {
        // Two that want the same part, or one a part of the other's, each need a pass of their own.
        let mut pass: Vec<usize> = Vec::new();
        left.retain(|&one| {
            let apart = pass.iter().all(|&other| apart(&readers, one, other));
            if apart {
                pass.push(one);
            }
            !apart
        });
        let mut document = serde_json::Deserializer::from_slice(data);
        let within = Within {
            readers: &mut readers,
            wanted: pass,
            depth: 0,
        };
        let done = within.deserialize(&mut document);
        if let Err(error) = done.and_then(|()| document.end()) {
            let refused = readers.iter_mut().find_map(|reader| reader.refused.take());
            return Err(refused.unwrap_or_else(|| {
                InferError::InvalidInput(format!("the data is no JSON: {error}"))
            }));
        }
        if left.is_empty() {
            return readers.into_iter().map(Reader::tensor).collect();
        }
    }
}

/// Whether neither of two readers wants a part of what the other wants.
fn apart(readers: &[Reader<'_>], one: usize, other: usize) -> bool {
    let (Some(one), Some(other)) = (readers.get(one), readers.get(other)) else {
        return true;
    };
    match (&one.tokens, &other.tokens) {
        (Some(one), Some(other)) => !one.starts_with(other) && !other.starts_with(one),
        _ => true,
    }
}

/// A part of the document, and who wants something of it.
struct Within<'r, 'a> {
    readers: &'r mut [Reader<'a>],
    wanted: Vec<usize>,
    /// How deep in the document it is.
    depth: usize,
}

impl<'a> Within<'_, 'a> {
    /// Those who want something of the part that this token leads to, which begins anew for them: of two members of one name the
    /// last counts.
    fn of(&mut self, is_it: impl Fn(&str) -> bool) -> Vec<usize> {
        let mut of = Vec::new();
        for &index in &self.wanted {
            let reader = self.readers.get_mut(index);
            let meant = |reader: &&mut Reader<'_>| reader.token(self.depth).is_some_and(&is_it);
            if let Some(reader) = reader.filter(meant) {
                reader.forget();
                of.push(index);
            }
        }
        of
    }

    fn deeper(&mut self, wanted: Vec<usize>) -> Within<'_, 'a> {
        Within {
            depth: self.depth + 1,
            readers: &mut *self.readers,
            wanted,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Within<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let depth = self.depth;
        let ends_here = |index: &&usize| {
            let reader = self.readers.get(**index);
            reader.is_some_and(|reader| reader.ends_at(depth))
        };
        let index = self.wanted.iter().find(ends_here).copied();
        match index.and_then(|index| self.readers.get_mut(index)) {
            Some(reader) => {
                reader.found = true;
                deserializer.deserialize_any(Part { reader, depth: 0 })
            }
            None => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Within<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        for at in 0_usize.. {
            let wanted = self.of(|token| index(token) == Some(at));
            let next = match wanted.is_empty() {
                true => list.next_element::<IgnoredAny>()?.map(drop),
                false => list.next_element_seed(self.deeper(wanted))?,
            };
            if next.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(wanted) =
            map.next_key_seed(Key(|key: &str| self.of(|token| token == key)))?
        {
            match wanted.is_empty() {
                true => drop(map.next_value::<IgnoredAny>()?),
                false => map.next_value_seed(self.deeper(wanted))?,
            }
        }
        Ok(())
    }
}

/// A member's name, and what it means.
struct Key<F>(F);

impl<'de, T, F: FnMut(&str) -> T> DeserializeSeed<'de> for Key<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<T, F: FnMut(&str) -> T> Visitor<'_> for Key<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(mut self, key: &str) -> Result<T, E> {
        Ok((self.0)(key))
    }
}

/// The index that a JSON Pointer's token is.
fn index(token: &str) -> Option<usize> {
    let plain = !token.starts_with('+') && (token == "0" || !token.starts_with('0'));
    plain.then(|| token.parse().ok()).flatten()
}

/// Reads one tensor from nested lists.
struct Reader<'a> {
    info: &'a TensorInfo,
    pointer: String,
    /// The pointer's; none: it is no pointer, and leads nowhere.
    tokens: Option<Vec<String>>,
    found: bool,
    /// By the first element of each list, as deep as the signature wants it.
    shape: Vec<usize>,
    /// How deep in the lists the elements are, once one was seen.
    leaf: Option<usize>,
    /// Where in the lists it is.
    path: Vec<usize>,
    data: Vec<u8>,
    /// What is wrong with the input.
    refused: Option<InferError>,
}

impl<'a> Reader<'a> {
    fn new(info: &'a TensorInfo, pointer: String) -> Self {
        let token = |token: &str| token.replace("~1", "/").replace("~0", "~");
        let tokens = match pointer.strip_prefix('/') {
            Some(rest) => Some(rest.split('/').map(token).collect()),
            None if pointer.is_empty() => Some(Vec::new()),
            None => None,
        };
        Self {
            info,
            pointer,
            tokens,
            found: false,
            shape: Vec::new(),
            leaf: None,
            path: Vec::new(),
            data: Vec::new(),
            refused: None,
        }
    }

    fn token(&self, depth: usize) -> Option<&str> {
        Some(self.tokens.as_ref()?.get(depth)?)
    }

    /// Whether its pointer leads to what is so deep.
    fn ends_at(&self, depth: usize) -> bool {
        self.tokens
            .as_ref()
            .is_some_and(|tokens| tokens.len() == depth)
    }

    fn forget(&mut self) {
        self.found = false;
        self.shape.clear();
        self.leaf = None;
        self.path.clear();
        self.data.clear();
    }

    fn tensor(self) -> Result<Tensor, InferError> {
        let (name, pointer) = (&self.info.name, &self.pointer);
        if !self.found {
            return Err(InferError::InvalidInput(format!(
                "the data has nothing at '{pointer}' for the input '{name}'"
            )));
        }
        Ok(Tensor {
            name: name.clone(),
            datatype: self.info.datatype,
            shape: self
                .shape
                .iter()
                .map(|size| i64::try_from(*size).unwrap_or(i64::MAX))
                .collect(),
            data: self.data,
        })
    }

    /// Whether a list that is so deep is one of lists or elements, and not where an element should be.
    fn opens(&self, depth: usize) -> bool {
        let rank = self.info.shape.as_ref().map_or(MAX_RANK, Vec::len);
        depth < self.leaf.unwrap_or(rank.min(MAX_RANK))
    }

    /// Something that is no list of others.
    fn single<E: Error>(&mut self, depth: usize, value: Single<'_>) -> Result<(), E> {
        match (self.leaf, &self.info.shape) {
            (Some(leaf), _) if depth < leaf => {
                let size = self.shape.get(depth).copied().unwrap_or_default();
                return Err(self.refuse(&format!("{value}, but a list of {size} before it")));
            }
            (None, Some(wanted)) if depth < wanted.len() => {
                let wanted = format!("{value}, but the model wants lists of the shape {wanted:?}");
                return Err(self.refuse(&wanted));
            }
            _ => self.leaf = Some(depth),
        }
        let datatype = self.info.datatype;
        match value.write(datatype, &mut self.data) {
            Some(()) => Ok(()),
            None => Err(self.refuse(&format!("{value}, which is no {datatype}"))),
        }
    }

    fn refuse<E: Error>(&mut self, what: &str) -> E {
        let path: String = self.path.iter().map(|at| format!("/{at}")).collect();
        self.refused = Some(InferError::InvalidInput(format!(
            "input '{}' has at '{}{path}' {what}",
            self.info.name, self.pointer
        )));
        E::custom("an input does not fit")
    }
}

/// A part of what a reader reads.
struct Part<'r, 'a> {
    reader: &'r mut Reader<'a>,
    /// How deep in the lists it is.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Part<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.reader.single(self.depth, Single::Boolean(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.reader.single(self.depth, Single::Whole(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.reader.single(self.depth, Single::Whole(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.reader.single(self.depth, Single::Fraction(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.reader.single(self.depth, Single::Text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.reader.single(self.depth, Single::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut bytes, mut others) = (None, false);
        while let Some(is_bytes) = map.next_key_seed(Key(|key: &str| key == "b64"))? {
            if is_bytes {
                bytes = map.next_value_seed(Encoded)?;
            } else {
                others = true;
                map.next_value::<IgnoredAny>()?;
            }
        }
        let bytes = bytes.filter(|_| !others);
        self.reader.single(self.depth, Single::Object(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { reader, depth } = self;
        if !reader.opens(depth) {
            let size = rest(&mut list)?;
            return reader.single(depth, Single::List(size));
        }
        let expected = reader.leaf.and_then(|_| reader.shape.get(depth).copied());
        if expected.is_none() {
            reader.shape.push(0);
        }
        let place = reader.path.len();
        reader.path.push(0);
        let mut size = 0;
        while expected != Some(size) {
            if let Some(at) = reader.path.get_mut(place) {
                *at = size;
            }
            let part = Part {
                reader: &mut *reader,
                depth: depth + 1,
            };
            if list.next_element_seed(part)?.is_none() {
                break;
            }
            size += 1;
        }
        reader.path.truncate(place);
        let Some(expected) = expected else {
            if let Some(first) = reader.shape.get_mut(depth) {
                *first = size;
            }
            // An empty list has no element that would say how deep they are.
            reader.leaf.get_or_insert(depth + 1);
            return Ok(());
        };
        size += rest(&mut list)?;
        match size == expected {
            true => Ok(()),
            false => Err(reader.refuse(&format!(
                "a list of {size}, but a list of {expected} before it"
            ))),
        }
    }
}

/// How many elements are left in a list.
fn rest<'de, A: SeqAccess<'de>>(list: &mut A) -> Result<usize, A::Error> {
    let mut count = 0;
    while list.next_element::<IgnoredAny>()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// The bytes that a text in base64 stands for; none: it is none.
struct Encoded;

impl<'de> DeserializeSeed<'de> for Encoded {
    type Value = Option<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Encoded {
    type Value = Option<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in base64")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(BASE64.decode(text).ok())
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        rest(&mut list)?;
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// What may be an element.
enum Single<'v> {
    Null,
    Boolean(bool),
    Whole(i128),
    Fraction(f64),
    Text(&'v str),
    /// A list of so many, where none should be.
    List(usize),
    /// Bytes if it is `{"b64": "…"}`.
    Object(Option<Vec<u8>>),
}

impl Single<'_> {
    /// Writes it as one element.
    fn write(&self, datatype: DataType, data: &mut Vec<u8>) -> Option<()> {
        match datatype {
            DataType::Boolean => match self {
                Self::Boolean(value) => data.push(u8::from(*value)),
                _ => return None,
            },
            DataType::U8 => data.push(self.integer::<u8>()?),
            DataType::U16 => data.extend(self.integer::<u16>()?.to_le_bytes()),
            DataType::U32 => data.extend(self.integer::<u32>()?.to_le_bytes()),
            DataType::U64 => data.extend(self.integer::<u64>()?.to_le_bytes()),
            DataType::S8 => data.extend(self.integer::<i8>()?.to_le_bytes()),
            DataType::S16 => data.extend(self.integer::<i16>()?.to_le_bytes()),
            DataType::S32 => data.extend(self.integer::<i32>()?.to_le_bytes()),
            DataType::S64 => data.extend(self.integer::<i64>()?.to_le_bytes()),
            DataType::F16 => {
                let value = Some(f16::from_f64(self.number()?));
                data.extend(value.filter(|value| value.is_finite())?.to_le_bytes());
            }
            DataType::Bf16 => {
                let value = Some(bf16::from_f64(self.number()?));
                data.extend(value.filter(|value| value.is_finite())?.to_le_bytes());
            }
            DataType::F32 => {
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "what a model's f32 input is for"
                )]
                let value = Some(self.number()? as f32);
                data.extend(value.filter(|value| value.is_finite())?.to_le_bytes());
            }
            DataType::F64 => data.extend(self.number()?.to_le_bytes()),
            DataType::Bytes => match self {
                Self::Text(text) => Strings::push(data, text.as_bytes()).ok()?,
                Self::Object(Some(bytes)) => Strings::push(data, bytes).ok()?,
                _ => return None,
            },
        }
        Some(())
    }

    /// A whole number, also when it is written `1.0`.
    fn integer<T: TryFrom<i128>>(&self) -> Option<T> {
        let whole = match *self {
            Self::Whole(value) => value,
            Self::Fraction(value) => {
                // Up to here every whole number is itself in binary64.
                let exact = value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0;
                #[allow(clippy::cast_possible_truncation, reason = "whole and small")]
                exact.then_some(value as i128)?
            }
            _ => return None,
        };
        T::try_from(whole).ok()
    }

    fn number(&self) -> Option<f64> {
        match *self {
            #[allow(clippy::cast_precision_loss, reason = "the nearest number is meant")]
            Self::Whole(value) => Some(value as f64),
            Self::Fraction(value) => Some(value),
            _ => None,
        }
    }
}

/// A value from outside, short enough for a message.
impl fmt::Display for Single<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Boolean(value) => value.fmt(f),
            Self::Whole(value) => write!(f, "the number {value}"),
            Self::Fraction(value) => write!(f, "the number {}", serde_json::json!(value)),
            Self::Text(text) => write!(f, "the text '{}'", shown(text)),
            Self::List(size) => write!(f, "a list of {size}"),
            Self::Object(_) => f.write_str("an object"),
        }
    }
}
