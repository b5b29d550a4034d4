//! Reading the parameters of a request, each with an error that says what is wanted.

use serde_json::Value;
use url::Url;

use crate::protocol::{EventId, Network, PublicKey};

/// Longest reason, in bytes.
const MAX_REASON: usize = 1_024;

pub(super) struct Params<'a>(pub &'a [Value]);

impl Params<'_> {
    fn text(&self) -> Result<&str, String> {
        self.0.first().and_then(Value::as_str).ok_or_else(|| "params[0] is not a text".to_owned())
    }

    pub fn pubkey(&self) -> Result<PublicKey, String> {
        let wanted = "params[0] is not a public key of 64 hexadecimal digits";
        PublicKey::from_text(self.text()?).ok_or_else(|| wanted.to_owned())
    }

    pub fn event(&self) -> Result<EventId, String> {
        let wanted = "params[0] is not an event id of 64 hexadecimal digits";
        EventId::parse(&self.text()?.to_ascii_lowercase()).ok_or_else(|| wanted.to_owned())
    }

    pub fn kind(&self) -> Result<u16, String> {
        let kind = self.0.first().and_then(Value::as_u64).and_then(|kind| kind.try_into().ok());
        kind.ok_or_else(|| "params[0] is not a kind, a number from 0 to 65535".to_owned())
    }

    /// An address or a whole network.
    pub fn network(&self) -> Result<Network, String> {
        let wanted = "params[0] is neither an IP address nor a network like 203.0.113.0/24";
        Network::parse(self.text()?).ok_or_else(|| wanted.to_owned())
    }

    /// The optional second parameter.
    pub fn reason(&self) -> Result<String, String> {
        match self.0.get(1) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(reason)) if reason.len() <= MAX_REASON => Ok(reason.clone()),
            Some(Value::String(_)) => Err(format!("a reason has at most {MAX_REASON} bytes")),
            Some(_) => Err("params[1] is not a text".to_owned()),
        }
    }

    /// A text of at most `max` bytes.
    pub fn short_text(&self, max: usize) -> Result<String, String> {
        let text = self.text()?;
        if text.len() > max {
            return Err(format!("at most {max} bytes"));
        }
        Ok(text.to_owned())
    }

    /// The URL of an image, or nothing.
    pub fn icon(&self) -> Result<String, String> {
        let text = self.short_text(MAX_REASON)?;
        let is_url =
            |text: &str| Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if text.is_empty() || is_url(&text) {
            return Ok(text);
        }
        Err("params[0] is not an http:// or https:// URL".to_owned())
    }
}
