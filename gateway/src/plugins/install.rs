//! Putting plugins into the plugins' folder and taking them out again. The gateway that runs there
//! sees what happened; nothing here needs one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    entry,
    folders::folders,
    granted::{Granted, GrantedError},
    loader::{Found, Loader, Running, folder_name},
    manifest::{self, Manifest, ManifestError},
    plugin::{self, PluginError},
    program::{self, Launch, Packed},
    section::section,
    services::Services,
    trial::Trial,
};

/// The name under which a component can carry its manifest: a custom section of WebAssembly.
const SECTION: &[u8] = b"plugin.toml";

/// Why something is not installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Manifest { path: PathBuf, error: ManifestError },
    #[error("{}: {error}", path.display())]
    Component { path: PathBuf, error: PluginError },
    #[error(
        "{} has no manifest: put a plugin.toml that names it, or {}.toml, beside it",
        path.display(),
        path.file_stem().unwrap_or_default().to_string_lossy()
    )]
    NoManifest { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Files { path: PathBuf, error: io::Error },
    #[error(
        "it is a program, which is not sandboxed: it is started when it is installed, never to be tried"
    )]
    Program,
    #[error("it does not run: {0}")]
    Broken(String),
    #[error(
        "there is a plugin {id} already, in {}; --replace puts the new one in its place",
        folder.display()
    )]
    Exists { id: String, folder: PathBuf },
    #[error("there is no plugin {id} in {}", dir.display())]
    Unknown { id: String, dir: PathBuf },
    #[error(transparent)]
    Granted(#[from] GrantedError),
}

/// A plugin to be installed.
pub struct Package {
    pub manifest: Manifest,
    text: String,
    content: Content,
    /// Name and text of the configuration's schema.
    schema: Option<(String, Vec<u8>)>,
}

/// What does the work.
enum Content {
    Component(Vec<u8>),
    /// A program, in the folder where it lies now.
    Program {
        folder: PathBuf,
        files: Vec<Packed>,
    },
}

impl Package {
    /// Reads a plugin from its folder, or from a component with its manifest beside or in it.
    ///
    /// # Errors
    /// When a part of it is missing or cannot be understood.
    pub fn read(path: &Path) -> Result<Self, InstallError> {
        let failed = |error| InstallError::Io { path: path.to_owned(), error };
        let is_folder = fs::metadata(path).map_err(failed)?.is_dir();
        if is_folder {
            let manifest_file = path.join(manifest::FILE_NAME);
            let (text, manifest) = read_manifest(&manifest_file)?;
            if manifest.is_program() {
                let files = program::pack(path);
                let failed = |error| InstallError::Files { path: path.to_owned(), error };
                let (folder, files) = (path.to_owned(), files.map_err(failed)?);
                let content = Content::Program { folder, files };
                return Ok(Self { manifest, text, content, schema: None });
            }
            let component = read_component(&path.join(&manifest.file))?;
            return Self::whole(text, manifest, component, path);
        }
        let component = read_component(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = folder.join(manifest::FILE_NAME);
        if beside.exists() {
            let (text, manifest) = read_manifest(&beside)?;
            if path.file_name().is_some_and(|name| *name == *manifest.file) {
                return Self::whole(text, manifest, component, folder);
            }
        }
        let named = path.with_extension("toml");
        if named.exists() {
            let (text, manifest) = read_manifest(&named)?;
            return Self::whole(text, manifest, component, folder);
        }
        let no_manifest = || InstallError::NoManifest { path: path.to_owned() };
        let text = section(&component, SECTION).ok_or_else(no_manifest)?;
        let wrong = |error| InstallError::Manifest { path: path.to_owned(), error };
        let text = String::from_utf8(text.to_vec()).map_err(|_| wrong(ManifestError::Encoding))?;
        let manifest = Manifest::parse(&text).map_err(wrong)?;
        Self::whole(text, manifest, component, folder)
    }

    fn whole(
        text: String,
        manifest: Manifest,
        component: Vec<u8>,
        folder: &Path,
    ) -> Result<Self, InstallError> {
        let mut schema = None;
        if let Some(name) = &manifest.config_schema {
            let path = folder.join(name);
            let failed = |error| InstallError::Manifest { path: path.clone(), error };
            let read = manifest::read_bounded(&path, manifest::MAX_BYTES);
            let text = read.map_err(|error| failed(ManifestError::Read(error)))?;
            schema = Some((name.clone(), text.ok_or_else(|| failed(ManifestError::TooLarge))?));
        }
        Ok(Self { manifest, text, content: Content::Component(component), schema })
    }

    /// Compiles it and tries whether it starts, with everything that it asks for. Takes as long as the
    /// compiler does and runs guest code; a program is started, with all that it may do.
    ///
    /// # Errors
    /// When it does not run.
    pub fn check(&self) -> Result<(), InstallError> {
        let services = Services::none().map_err(|error| InstallError::Broken(error.to_string()))?;
        let loader = Loader::new(None, 0, services);
        let found = match &self.content {
            Content::Component(component) => {
                Found::of(&self.manifest, component, self.schema.clone())
            }
            Content::Program { folder, .. } => Found::of_program(&self.manifest, folder),
        };
        loader.check(&found, &Granted::everything()).map_err(InstallError::Broken)
    }

    /// The same, and it goes on running: it is to be asked about events.
    ///
    /// # Errors
    /// When it does not run.
    pub fn trial(&self, services: Services) -> Result<Trial, InstallError> {
        let Content::Component(component) = &self.content else {
            return Err(InstallError::Program);
        };
        let budget = services.budget;
        let loader = Loader::new(None, 0, services);
        let found = Found::of(&self.manifest, component, self.schema.clone());
        match loader.run(&found, &self.manifest.id, &Granted::everything()) {
            Ok(Running::Component(plugin, instance)) => {
                Ok(Trial::new(loader, plugin, instance, budget))
            }
            Ok(Running::Program(_)) => Err(InstallError::Program),
            Err(why) => Err(InstallError::Broken(why)),
        }
    }

    /// Whether it may ask the store.
    pub fn asks_store(&self) -> bool {
        let Manifest { capabilities, optional_capabilities, .. } = &self.manifest;
        let mut wanted = capabilities.iter().chain(optional_capabilities);
        wanted.any(|wanted| *wanted == manifest::Capability::Lookup)
    }

    /// Whether a program could be started, without doing so: what it does nobody can take back.
    ///
    /// # Errors
    /// When it is not there or cannot be executed.
    pub fn check_program(&self) -> Result<(), InstallError> {
        let Content::Program { folder, .. } = &self.content else { return Ok(()) };
        let launch = Launch::new(folder, &self.manifest.program, None);
        launch.map(drop).map_err(InstallError::Broken)
    }

    /// What its manifest says.
    pub fn described(&self, granted: &Granted) -> Value {
        let mut value = entry::described(&self.manifest, granted);
        value["id"] = json!(self.manifest.id);
        value["version"] = json!(self.manifest.version);
        value
    }

    /// Puts it into a plugins' folder, whole or not at all. What it replaces is kept there as
    /// `.ID.previous`. Returns its folder.
    ///
    /// # Errors
    /// When there is such a plugin already and it is not to be replaced; when the folder cannot be
    /// written.
    pub fn install(&self, dir: &Path, replace: bool) -> Result<PathBuf, InstallError> {
        let id = &self.manifest.id;
        let there = match find(dir, id) {
            Err(InstallError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => None,
            there => there?,
        };
        if let Some(folder) = there.as_ref().filter(|_| !replace) {
            return Err(InstallError::Exists { id: id.clone(), folder: folder.clone() });
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| InstallError::Io { path: path.clone(), error }
        };
        make_dir(dir).map_err(failed(dir))?;
        let folder = there.clone().unwrap_or_else(|| dir.join(id));
        if there.is_none() && folder.exists() {
            return Err(InstallError::Exists { id: id.clone(), folder });
        }
        let draft = dir.join(format!(".{id}.new"));
        remove_all(&draft).map_err(failed(&draft))?;
        self.write(&draft, dir).map_err(failed(&draft))?;
        if there.is_some() {
            let previous = dir.join(format!(".{id}.previous"));
            remove_all(&previous).map_err(failed(&previous))?;
            fs::rename(&folder, &previous).map_err(failed(&folder))?;
        }
        fs::rename(&draft, &folder).map_err(failed(&folder))?;
        Ok(folder)
    }

    fn write(&self, folder: &Path, dir: &Path) -> io::Result<()> {
        fs::create_dir(folder)?;
        let schema = self.schema.as_ref().map(|(name, text)| (name.as_str(), text.as_slice()));
        let mut files = vec![(manifest::FILE_NAME, self.text.as_bytes())];
        match &self.content {
            Content::Component(bytes) => files.push((&self.manifest.file, bytes)),
            Content::Program { files, .. } => {
                for file in files {
                    let path = file.write(folder)?;
                    give_to_owner_of(dir, &path)?;
                    // The folders that it lies in.
                    for above in path.ancestors().skip(1).take_while(|above| *above != folder) {
                        give_to_owner_of(dir, above)?;
                    }
                }
            }
        }
        for (name, bytes) in files.into_iter().chain(schema) {
            fs::write(folder.join(name), bytes)?;
            give_to_owner_of(dir, &folder.join(name))?;
        }
        give_to_owner_of(dir, folder)
    }
}

/// The folder of a plugin.
///
/// # Errors
/// When the plugins' folder cannot be read.
pub fn find(dir: &Path, id: &str) -> Result<Option<PathBuf>, InstallError> {
    let found = folders(dir, |_, _| {});
    let found = found.map_err(|error| InstallError::Io { path: dir.to_owned(), error })?;
    Ok(found.into_iter().find(|folder| id_in(folder) == id))
}

/// The id of the plugin in a folder, or the folder's name.
fn id_in(folder: &Path) -> String {
    let manifest = Manifest::read(&folder.join(manifest::FILE_NAME));
    manifest.map_or_else(|_| folder_name(folder), |manifest| manifest.id)
}

/// Takes a plugin out of its folder, with its configuration. Returns which folder that was.
///
/// # Errors
/// When there is none with this id, or it cannot be removed.
pub fn remove(dir: &Path, id: &str) -> Result<PathBuf, InstallError> {
    let unknown = || InstallError::Unknown { id: id.to_owned(), dir: dir.to_owned() };
    let folder = find(dir, id)?.ok_or_else(unknown)?;
    let failed = |error| InstallError::Io { path: folder.clone(), error };
    // Under a hidden name first, so that no half of it is seen.
    let doomed = dir.join(format!(".{}.removed", folder_name(&folder)));
    remove_all(&doomed).map_err(failed)?;
    fs::rename(&folder, &doomed).map_err(failed)?;
    remove_all(&doomed).map_err(failed)?;
    Ok(folder)
}

/// The plugins in a folder, as far as their manifests tell: nothing is compiled.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn survey(dir: &Path, granted: &Granted) -> Result<Vec<Value>, InstallError> {
    let found = match folders(dir, |_, _| {}) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(|error| InstallError::Io { path: dir.to_owned(), error })?,
    };
    let mut plugins: Vec<_> = found
        .iter()
        .map(|folder| {
            let manifest = Manifest::read(&folder.join(manifest::FILE_NAME));
            let order = manifest.as_ref().ok().map(|manifest| manifest.order);
            ((order, id_in(folder)), surveyed(folder, manifest, granted))
        })
        .collect();
    plugins.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(plugins.into_iter().map(|(_, plugin)| plugin).collect())
}

fn surveyed(folder: &Path, manifest: Result<Manifest, ManifestError>, granted: &Granted) -> Value {
    let broken = |cause: String| json!({ "broken": { "cause": cause } });
    let (id, version, state, rest) = match &manifest {
        Ok(manifest) => {
            let missing = granted.missing(&manifest.id, &manifest.capabilities);
            let state = match missing.is_empty() {
                true => json!({ "installed": {} }),
                false => {
                    broken(PluginError::NotGranted { id: manifest.id.clone(), missing }.to_string())
                }
            };
            let rest = entry::described(manifest, granted);
            (manifest.id.clone(), manifest.version.clone(), state, rest)
        }
        Err(error) => {
            let state = broken(format!("{}: {error}", manifest::FILE_NAME));
            (folder_name(folder), String::new(), state, json!({}))
        }
    };
    let state = if granted.is_enabled(&id) { state } else { json!({ "disabled": {} }) };
    let mut value = json!({ "id": id, "version": version, "state": state, "folder": folder });
    if let (Some(all), Some(rest)) = (value.as_object_mut(), rest.as_object()) {
        all.extend(rest.clone());
    }
    value
}

/// Makes a directory and those above it, its owner's alone.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)?;
    match dir.parent() {
        Some(parent) => give_to_owner_of(parent, dir),
        None => Ok(()),
    }
}

fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn read_manifest(path: &Path) -> Result<(String, Manifest), InstallError> {
    let wrong = |error| InstallError::Manifest { path: path.to_owned(), error };
    let text = Manifest::read_text(path).map_err(wrong)?;
    let manifest = Manifest::parse(&text).map_err(wrong)?;
    Ok((text, manifest))
}

fn read_component(path: &Path) -> Result<Vec<u8>, InstallError> {
    plugin::read(path).map_err(|error| InstallError::Component { path: path.to_owned(), error })
}

/// What root puts into a directory of somebody else is to be read by the gateway that runs as them.
///
/// # Errors
/// When the owner cannot be set.
#[cfg(unix)]
pub fn give_to_owner_of(dir: &Path, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(dir)?;
    if owner.uid() == 0 {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
}

#[cfg(not(unix))]
pub fn give_to_owner_of(_: &Path, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKLIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/blocklist");

    #[test]
    fn a_plugin_is_installed_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("data/plugins");
        let package = Package::read(Path::new(BLOCKLIST)).unwrap();
        package.check().unwrap();
        let folder = package.install(&plugins, false).unwrap();
        assert_eq!(folder, plugins.join("blocklist"));
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["blocklist.wasm", "config.schema.json", "plugin.toml"]);
        let again = package.install(&plugins, false).unwrap_err().to_string();
        assert!(again.contains("--replace"), "{again}");

        // Under whatever name its folder has; the former one is kept.
        fs::rename(&folder, plugins.join("mine")).unwrap();
        fs::write(plugins.join("mine/notes"), "x").unwrap();
        assert_eq!(package.install(&plugins, true).unwrap(), plugins.join("mine"));
        assert!(!plugins.join("mine/notes").exists());
        assert!(plugins.join(".blocklist.previous/notes").exists());
        let surveyed = survey(&plugins, &Granted::default()).unwrap();
        assert_eq!(surveyed.len(), 1);
        assert_eq!(
            (&surveyed[0]["id"], &surveyed[0]["world"]),
            (&json!("blocklist"), &json!("event-filter"))
        );
        assert_eq!(remove(&plugins, "blocklist").unwrap(), plugins.join("mine"));
        assert!(survey(&plugins, &Granted::default()).unwrap().is_empty());
        assert!(matches!(remove(&plugins, "blocklist"), Err(InstallError::Unknown { .. })));
    }

    #[test]
    fn a_component_brings_its_manifest_beside_or_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let shipped = |name: &str| fs::read(Path::new(BLOCKLIST).join(name)).unwrap();
        let (manifest, component) = (shipped("plugin.toml"), shipped("blocklist.wasm"));
        fs::write(dir.path().join("config.schema.json"), shipped("config.schema.json")).unwrap();
        let file = dir.path().join("x.wasm");
        fs::write(&file, &component).unwrap();
        let error = Package::read(&file).err().unwrap().to_string();
        assert!(error.ends_with("or x.toml, beside it"), "{error}");
        fs::write(dir.path().join("x.toml"), &manifest).unwrap();
        assert_eq!(Package::read(&file).unwrap().manifest.id, "blocklist");
        fs::remove_file(dir.path().join("x.toml")).unwrap();
        // One of another plugin is not its own.
        fs::write(dir.path().join("plugin.toml"), &manifest).unwrap();
        assert!(Package::read(&file).is_err());
        fs::rename(&file, dir.path().join("blocklist.wasm")).unwrap();
        let file = dir.path().join("blocklist.wasm");
        assert_eq!(Package::read(&file).unwrap().manifest.id, "blocklist");
        fs::remove_file(dir.path().join("plugin.toml")).unwrap();

        let mut content = vec![u8::try_from(SECTION.len()).unwrap()];
        content.extend(SECTION);
        content.extend(&manifest);
        let mut carrying = component.clone();
        carrying.push(0);
        let length = u32::try_from(content.len()).unwrap();
        carrying.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        carrying.extend(&content);
        fs::write(&file, &carrying).unwrap();
        let package = Package::read(&file).unwrap();
        assert_eq!(package.manifest.id, "blocklist");
        package.check().unwrap();
        // Cut anywhere it is refused, not more.
        for length in 0..40 {
            assert!(section(&carrying[..length], SECTION).is_none());
        }
    }

    #[test]
    fn what_does_not_run_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["plugin.toml", "config.schema.json"] {
            fs::copy(Path::new(BLOCKLIST).join(name), dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("blocklist.wasm"), "nonsense").unwrap();
        let error = Package::read(dir.path()).unwrap().check().unwrap_err().to_string();
        assert!(error.starts_with("it does not run: blocklist.wasm: "), "{error}");
    }
}
