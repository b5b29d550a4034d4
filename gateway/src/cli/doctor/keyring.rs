//! Whether the next start finds its secrets, and can keep new ones.

use crate::{
    config::Loaded,
    gossip::check::{Check, KEYRING, Verdict},
    secrets::{self, Probed, SecretsError},
};

/// Without a gateway: goes where a start would go.
pub(super) async fn check(loaded: &Loaded) -> Check {
    judge(secrets::probe(&loaded.config.secrets, &loaded.data_dir).await)
}

fn judge(probed: Result<Probed, SecretsError>) -> Check {
    let check = |verdict, found: &str| Check::new(KEYRING, verdict, found);
    match probed {
        Ok(Probed::Keyring) => {
            check(Verdict::Ok, "the keyring gave back what was put in, and removed it")
        }
        Ok(Probed::File) => check(Verdict::Ok, "secrets rest in: file; it opens"),
        Ok(Probed::NoFile) => {
            check(Verdict::NotChecked, "an encrypted file is made at the first start")
        }
        Ok(Probed::Memory) => check(Verdict::Warning, "secrets are kept in memory alone").advise(
            "each start has another endpoint id and no private topics: set secrets.store to \
             \"auto\" to keep them",
        ),
        Ok(Probed::FileInstead(error)) => {
            let found = format!("{error}; secrets would go into an encrypted file");
            check(Verdict::Warning, &found).advise(
                "unlock the keyring or start its service before the first start; or set \
                 secrets.store to \"file\"",
            )
        }
        Err(SecretsError::KeyringNeeded { index, reason }) => {
            let found = format!(
                "the secrets of this data directory rest in the keyring ({} says so), and {reason}",
                index.display()
            );
            check(Verdict::Failed, &found)
                .advise("unlock the keyring, or start its service, before the gateway starts")
        }
        Err(SecretsError::KeyringChosen { reason }) => check(Verdict::Failed, &reason.to_string())
            .advise("unlock the keyring or start its service, or set secrets.store to \"file\""),
        Err(error) => check(Verdict::Failed, &error.to_string()).advise(
            "the gateway does not start without its secrets: restore what is named from a backup, \
             or name the right key in secrets.key_file",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;

    #[test]
    fn what_stops_a_start_fails_and_comes_with_advice() {
        let timeout = || {
            let (what, limit) = ("the keyring", Duration::from_secs(1));
            Box::new(SecretsError::Timeout { what, limit, why: "it is locked" })
        };
        let index = PathBuf::from("keyring.json");
        for (probed, verdict, words) in [
            (Ok(Probed::Keyring), Verdict::Ok, ""),
            (Ok(Probed::File), Verdict::Ok, ""),
            (Ok(Probed::NoFile), Verdict::NotChecked, ""),
            (Ok(Probed::Memory), Verdict::Warning, "secrets.store"),
            (Ok(Probed::FileInstead(*timeout())), Verdict::Warning, "nlock"),
            (Err(SecretsError::KeyringChosen { reason: timeout() }), Verdict::Failed, "nlock"),
            (
                Err(SecretsError::KeyringNeeded { index, reason: timeout() }),
                Verdict::Failed,
                "unlock",
            ),
            (Err(SecretsError::NoKey("secrets.age".into())), Verdict::Failed, "secrets.key_file"),
        ] {
            let check = judge(probed);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.advice.clone().unwrap_or_default().contains(words), "{check:?}");
        }
    }
}
