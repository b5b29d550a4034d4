//! `keyring.json`: what this data directory has in the keyring. Not every keyring can be asked what is
//! in it, and an empty answer must not pass for a first start.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{SecretsError, disk};
use crate::pipeline::secrets::check_secret;

/// The file's name in the data directory.
pub(super) const FILE: &str = "keyring.json";

/// The index, which is written before it counts.
#[derive(Debug, Clone)]
pub(super) struct Index {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Sets the entries of this data directory apart from those of others. It goes with the
    /// directory when that is moved.
    id: String,
    /// Secrets are on their way between keyring and file: while there is a file, it is the one that
    /// counts.
    moving: bool,
    names: BTreeMap<String, State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// The keyring holds it.
    Held,
    /// About to be put in or removed: the keyring may hold it.
    Pending,
}

impl Index {
    /// A new one, with an id that nobody else has. It is not on disk yet.
    pub fn new(data_dir: &Path) -> Self {
        let id = crate::protocol::hex::encode(&rand::random::<[u8; 16]>());
        let content = Content { id, moving: false, names: BTreeMap::new() };
        Self { path: data_dir.join(FILE), content }
    }

    /// Reads it; `None` when this data directory has nothing in the keyring.
    ///
    /// # Errors
    /// When it is damaged. It is not passed over: a new identity would follow.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, SecretsError> {
        let path = data_dir.join(FILE);
        let Some(bytes) = disk::read(&path)? else { return Ok(None) };
        let content = serde_json::from_slice::<Content>(&bytes).ok().filter(|content| {
            let hex = |b: u8| b.is_ascii_hexdigit();
            content.id.len() == 32
                && content.id.bytes().all(hex)
                && content.names.keys().all(|name| check_secret(name, None).is_ok())
        });
        match content {
            Some(content) => Ok(Some(Self { path, content })),
            None => {
                let reason = "it does not say what is in the keyring".to_owned();
                Err(SecretsError::Damaged { path, reason })
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> &str {
        &self.content.id
    }

    pub fn is_empty(&self) -> bool {
        self.content.names.is_empty()
    }

    pub fn is_moving(&self) -> bool {
        self.content.moving
    }

    pub fn state(&self, name: &str) -> Option<State> {
        self.content.names.get(name).copied()
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.content.names.keys()
    }

    /// The first name that the keyring surely holds.
    pub fn first_held(&self) -> Option<String> {
        let mut names = self.content.names.iter();
        names.find(|(_, state)| **state == State::Held).map(|(name, _)| name.clone())
    }

    /// Notes the state of a name; `None` forgets it.
    pub fn note(&mut self, name: &str, state: Option<State>) -> Result<(), SecretsError> {
        let mut next = self.content.clone();
        match state {
            Some(state) => next.names.insert(name.to_owned(), state),
            None => next.names.remove(name),
        };
        self.write(next)
    }

    /// Notes that secrets are on their way, or that they have arrived.
    pub fn note_moving(&mut self, moving: bool) -> Result<(), SecretsError> {
        let next = Content { moving, ..self.content.clone() };
        self.write(next)
    }

    pub fn remove(&self) -> Result<(), SecretsError> {
        disk::remove(&self.path)
    }

    fn write(&mut self, next: Content) -> Result<(), SecretsError> {
        let mut text = serde_json::to_vec_pretty(&next).expect("texts and words are JSON");
        text.push(b'\n');
        disk::replace(&self.path, &text)?;
        self.content = next;
        Ok(())
    }
}
