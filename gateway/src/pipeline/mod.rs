//! The one way in, and the few traits where the parts meet.
//!
//! Every event — from a client, a topic, an upstream relay, a fetch — becomes a [`Candidate`] and
//! goes through [`Ingest::submit`]. There is no second path into the store.

pub mod config;
pub mod decision;
pub mod follows;
pub mod inflight;
pub mod ingest;
pub mod joined;
pub mod kv;
pub mod lookup;
pub mod moderation;
pub mod origin;
pub mod policy;
pub mod ports;
mod recent;
pub mod remembered;
pub mod routing;
pub mod scan;
pub mod scopes;
pub mod secrets;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod viewer;
mod worker;

pub use decision::{Decision, Outcome};
pub use follows::{FollowStore, SavedGroup};
pub use ingest::{Candidate, Ingest, StartIngest, Target};
pub use joined::{HowJoined, JoinedTopics, KeptPrivate, KeptTopic, TopicDoor, TopicStore, Visit};
pub use kv::{KvChange, KvPair, KvStore};
pub use lookup::{AuthorHeld, Cost, Lookup, LookupError};
pub use moderation::{Moderation, ModerationStore};
pub use origin::{Origin, PeerId};
pub use policy::{
    Answer, Context, Direction, Judged, Policy, PolicyWorker, Question, RotationAnswer,
    RotationMember, RotationPolicy, RotationQuestion, Stays, VisitPolicy, wait_for_decision,
};
pub use ports::{
    Affected, Committed, Count, EventReader, EventWriter, Gone, IdSet, LogEntry, Passing, Presence,
    Removal, Scope, Seq, Span, StoreError, TopicIds, Write,
};
pub use remembered::{PeerStore, RememberedPeer};
pub use routing::Routing;
pub use scan::{Scan, ScanItem, ScanSender};
pub use scopes::StreamScopes;
pub use secrets::{MemorySecrets, RestingPlace, Secret, SecretError, SecretStore};
pub use streams::{DroppedEvent, StreamRelay, UpCursor, UpstreamStore};
pub use viewer::{Audience, PrivateTopics, SharedViewer, Viewer};
