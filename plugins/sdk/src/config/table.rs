//! The table as serde sees it. The host gives a value for a name and does not list the names, so the
//! names come from the struct.

use std::{fmt, slice::Iter};

use serde::{
    de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};

use super::{missing, wrong};
use crate::host::config::get;

/// What is wrong, as a sentence for the operator.
#[derive(Debug)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self(format!("config: {text}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self(missing(field))
    }
}

pub struct Table;

impl<'de> Deserializer<'de> for Table {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("it can be read as a struct with named fields only"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields { left: fields.iter(), now: None })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Fields {
    left: Iter<'static, &'static str>,
    /// The key whose value comes next, and that value.
    now: Option<(&'static str, String)>,
}

impl<'de> MapAccess<'de> for Fields {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.now = self.left.find_map(|&key| Some((key, get(key)?)));
        let key = self.now.as_ref().map(|(key, _)| StrDeserializer::new(key));
        key.map(|key| seed.deserialize(key)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, json) = self.now.take().expect("serde asks for the key first");
        // Read as a stream: nothing of the value may borrow from this text.
        let mut json = serde_json::Deserializer::from_reader(json.as_bytes());
        seed.deserialize(&mut json).map_err(|error| Error(wrong(key, &error)))
    }
}
