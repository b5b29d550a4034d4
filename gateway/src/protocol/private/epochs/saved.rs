//! The state as bytes, in two parts: one for the database, and one that is secret.
//!
//! The secret part has to be saved first. A crash between the two leaves secrets that no roster
//! speaks of; they are dropped at the next start. The other way round there would be a roster
//! without its secret.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use zeroize::{Zeroize, Zeroizing};

use super::{
    Chain, EpochId, Epochs, Held, MAX_HELD,
    admin::{Deed, Wish},
    epoch_id,
    members::Source,
};
use crate::protocol::private::{
    MAX_MEMBERS, Malformed, MemberId, Topic,
    bytes::{Reader, write_count, write_name},
    derive::{EpochSecret, TopicKey, commitment},
    message::{MAX_CHAIN, read_admissions, read_optional, write_admissions, write_optional},
    roster::{Header, MAX_GRACE, RosterHash, UnverifiedRoster, Uses},
};

const VERSION: u8 = 1;

/// The longest secret part, in bytes: it fits into one entry of every keyring.
pub const MAX_SECRET_BYTES: usize = 2 + 32 + 32 + 1 + MAX_HELD * (8 + 32 + 9);

impl Epochs {
    /// What may stand in a database: rosters, admissions, public keys.
    pub fn open_state(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.topic.admin);
        write_name(&self.topic.name, &mut out);
        write_optional(self.admission.as_ref(), &mut out);
        out.push(u8::from(self.chain.is_some()));
        if let Some(chain) = &self.chain {
            let headers = chain.whole();
            write_count(headers.len(), &mut out);
            headers.iter().for_each(|header| header.write(&mut out));
            chain.head().unverified().write(&mut out);
        }
        let admissions: Vec<_> = self.admissions.values().copied().collect();
        write_admissions(&admissions, &mut out);
        write_count(self.wishes.len(), &mut out);
        self.wishes.iter().for_each(|wish| wish.write(&mut out));
        out
    }

    /// Which topic a saved [`Self::open_state`] is of.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn topic_of(open: &[u8]) -> Result<Topic, Malformed> {
        let mut reader = Reader::new(open);
        if reader.u8()? != VERSION {
            return Err(Malformed);
        }
        Ok(Topic { admin: reader.array()?, name: reader.name()? })
    }

    /// What belongs into the secret store: at most [`MAX_SECRET_BYTES`].
    pub fn secret_state(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES));
        out.push(VERSION);
        out.extend_from_slice(self.topic_key.expose());
        out.push(u8::from(self.admin.is_some()));
        if let Some(admin) = &self.admin {
            out.extend_from_slice(admin.as_bytes());
        }
        out.push(self.held.len() as u8);
        for held in &self.held {
            out.extend_from_slice(&held.id.number.to_be_bytes());
            out.extend_from_slice(held.secret.expose());
            out.push(u8::from(held.until.is_some()));
            if let Some(until) = held.until {
                out.extend_from_slice(&until.to_be_bytes());
            }
        }
        out
    }

    /// Whether the admin's key is in a saved [`Self::secret_state`], or may be: of one that is damaged
    /// nobody knows.
    pub fn may_have_admin_key(secret: &[u8]) -> bool {
        // Version, topic key, flag.
        !matches!((secret.first(), secret.get(33)), (Some(&VERSION), Some(0)))
    }

    /// The state that was saved. Signatures are verified again: a database can be edited.
    ///
    /// # Errors
    /// When the parts are damaged, or do not belong together.
    pub fn restore(me: MemberId, open: &[u8], secret: &[u8], now: u64) -> Result<Self, Malformed> {
        let mut reader = Reader::new(open);
        if reader.u8()? != VERSION {
            return Err(Malformed);
        }
        let topic = Topic { admin: reader.array()?, name: reader.name()? };
        let admission = read_optional(&mut reader)?;
        if admission.is_some_and(|one| one.member != me || !one.is_valid(&topic)) {
            return Err(Malformed);
        }
        let chain = if reader.flag()? { Some(read_chain(&topic, &mut reader)?) } else { None };
        let admissions = read_admissions(&mut reader)?;
        let count = usize::from(reader.u16()?);
        let wishes = (0..count).map(|_| Wish::read(&mut reader)).collect::<Result<_, _>>()?;
        reader.end()?;

        let (topic_key, admin, held) = read_secrets(&topic, secret)?;
        let mut epochs = Self {
            me,
            topic,
            topic_key,
            admin,
            chain,
            admission,
            held,
            admissions: BTreeMap::new(),
            wishes,
        };
        epochs.settle_held(now)?;
        for admission in admissions {
            epochs.admit(admission, Source::Member);
        }
        Ok(epochs)
    }

    /// Makes the secrets fit the newest roster.
    fn settle_held(&mut self, now: u64) -> Result<(), Malformed> {
        let Some(newest) = self.roster().map(epoch_id) else {
            // Invited: one secret, that of the invite.
            return if self.held.len() == 1 { Ok(()) } else { Err(Malformed) };
        };
        for held in &mut self.held {
            if held.id == newest {
                held.until = None;
            } else if let Some(until) = &mut held.until {
                // The clock may have been set back by years meanwhile.
                *until = (*until).min(now.saturating_add(MAX_GRACE.into()));
            }
        }
        self.held.retain(|held| held.id == newest || held.until.is_some());
        self.held.sort_by_key(|held| held.until.unwrap_or(u64::MAX));
        if self.held.iter().any(|held| held.id == newest) { Ok(()) } else { Err(Malformed) }
    }
}

fn read_chain(topic: &Topic, reader: &mut Reader<'_>) -> Result<Chain, Malformed> {
    let count = reader.count(MAX_CHAIN)?;
    let headers: Vec<_> = (0..count).map(|_| Header::read(reader)).collect::<Result<_, _>>()?;
    let head = UnverifiedRoster::read(reader)?.verify(topic)?;
    Chain::new(topic, &headers, head)
}

type Secrets = (TopicKey, Option<SigningKey>, Vec<Held>);

fn read_secrets(topic: &Topic, bytes: &[u8]) -> Result<Secrets, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(Malformed);
    }
    let topic_key = TopicKey::new(reader.array()?);
    let admin = if reader.flag()? {
        let mut seed: [u8; 32] = reader.array()?;
        let key = SigningKey::from_bytes(&seed);
        seed.zeroize();
        if key.verifying_key().to_bytes() != topic.admin {
            return Err(Malformed);
        }
        Some(key)
    } else {
        None
    };
    let count = usize::from(reader.u8()?);
    if count > MAX_HELD {
        return Err(Malformed);
    }
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.u64()?;
        let secret = EpochSecret::new(reader.array()?);
        let until = if reader.flag()? { Some(reader.u64()?) } else { None };
        let id = EpochId { number, commitment: commitment(topic, number, &secret) };
        held.push(Held { id, secret, until });
    }
    reader.end()?;
    Ok((topic_key, admin, held))
}

impl Wish {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.roster.0);
        out.extend_from_slice(&self.made_at.to_be_bytes());
        match &self.what {
            Deed::LeftOut(members) => {
                out.push(1);
                write_count(members.len(), out);
                members.iter().for_each(|member| out.extend_from_slice(&member.0));
            }
            Deed::Invited(key, uses) => {
                out.push(if *uses == Uses::Once { 2 } else { 3 });
                out.extend_from_slice(key);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let roster = RosterHash(reader.array()?);
        let made_at = reader.u64()?;
        let what = match reader.u8()? {
            1 => {
                let count = reader.count(MAX_MEMBERS)?;
                let members = (0..count).map(|_| reader.array().map(MemberId));
                Deed::LeftOut(members.collect::<Result<_, _>>()?)
            }
            2 => Deed::Invited(reader.array()?, Uses::Once),
            3 => Deed::Invited(reader.array()?, Uses::Many),
            _ => return Err(Malformed),
        };
        Ok(Self { roster, made_at, what })
    }
}
