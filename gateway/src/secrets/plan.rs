//! What a start does about secrets: decided from the setting and from what is in the data directory,
//! before anything is touched.

use super::config::StoreChoice;

/// What the data directory says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// There is an encrypted file. It is made and moved as a whole, so it is never half full.
    pub file: bool,
    /// The keyring holds, or may hold, secrets of this directory.
    pub keyring: bool,
    /// They are copies, as long as there is a file: a move between the two was broken off.
    pub moving: bool,
    /// The operator named a key for the file.
    pub key_given: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    Memory,
    File,
    /// The file counts; what the keyring still has are copies to be removed.
    FileAfterBrokenMove,
    /// The keyring or nothing.
    Keyring,
    /// Nothing rests anywhere yet.
    KeyringElseFile,
    FromFileToKeyring,
    FromKeyringToFile,
}

pub(super) fn plan(choice: StoreChoice, found: Found) -> Plan {
    let file_counts = found.file && (found.moving || !found.keyring);
    match choice {
        StoreChoice::Memory => Plan::Memory,
        StoreChoice::Keyring if found.file => Plan::FromFileToKeyring,
        StoreChoice::Keyring => Plan::Keyring,
        StoreChoice::File | StoreChoice::Auto if file_counts => match found.keyring {
            true => Plan::FileAfterBrokenMove,
            false => Plan::File,
        },
        StoreChoice::File if found.keyring => Plan::FromKeyringToFile,
        StoreChoice::File => Plan::File,
        // Both are whole only between the last two steps of a move, and then they are the same.
        StoreChoice::Auto if found.keyring && found.file => Plan::FromFileToKeyring,
        StoreChoice::Auto if found.keyring => Plan::Keyring,
        // Whoever names a key wants a file.
        StoreChoice::Auto if found.key_given => Plan::File,
        StoreChoice::Auto => Plan::KeyringElseFile,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StoreChoice::{Auto, File, Keyring, Memory};

    fn found(file: bool, keyring: bool, moving: bool) -> Found {
        Found { file, keyring, moving, key_given: false }
    }

    #[test]
    fn a_first_start_takes_what_works() {
        let none = Found::default();
        assert_eq!(plan(Auto, none), Plan::KeyringElseFile);
        assert_eq!(plan(Auto, Found { key_given: true, ..none }), Plan::File);
        assert_eq!(plan(Keyring, none), Plan::Keyring);
        assert_eq!(plan(File, none), Plan::File);
        assert_eq!(plan(Memory, found(true, true, true)), Plan::Memory);
    }

    #[test]
    fn secrets_are_never_left_behind() {
        for choice in [Auto, File, Keyring] {
            for key_given in [false, true] {
                for (file, keyring, moving) in
                    [(true, false, false), (false, true, false), (true, true, true)]
                {
                    let found = Found { file, keyring, moving, key_given };
                    let counts = if file { "file" } else { "keyring" };
                    let read_from = match plan(choice, found) {
                        Plan::File | Plan::FileAfterBrokenMove | Plan::FromFileToKeyring => "file",
                        Plan::Keyring | Plan::FromKeyringToFile => "keyring",
                        Plan::Memory | Plan::KeyringElseFile => "nothing",
                    };
                    assert_eq!(read_from, counts, "{choice:?} {found:?}");
                }
            }
        }
    }

    #[test]
    fn auto_stays_where_the_secrets_are() {
        assert_eq!(plan(Auto, found(true, false, false)), Plan::File);
        assert_eq!(plan(Auto, found(false, true, false)), Plan::Keyring);
        // Also with a key that was given later: nobody asked to move.
        let later = Found { key_given: true, ..found(false, true, false) };
        assert_eq!(plan(Auto, later), Plan::Keyring);
    }
}
