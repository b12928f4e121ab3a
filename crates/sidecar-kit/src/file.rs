//! Writing files completely or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file could not be written. An older file at the same path is unchanged.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    /// The path of the file.
    pub path: PathBuf,
    source: io::Error,
}

/// Writes `contents` to a temporary name beside `path` with the permissions `mode`, then renames it. A reader sees the
/// old file or the new one, never a part.
///
/// # Errors
/// When the directory is missing, full or not writable. No temporary file stays behind.
pub fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_owned(), source };
    let (temporary, file) = create_beside(path, mode).map_err(failed)?;
    let written = fill(file, contents, mode).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // Report the write's error, not that of the removal.
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

/// Writes as [`write_atomically`] does, unless the file already holds `contents`. The log says which.
///
/// # Errors
/// As for [`write_atomically`].
pub fn write_if_changed(path: &Path, contents: &[u8], mode: u32) -> Result<(), WriteError> {
    if fs::read(path).is_ok_and(|written| written == contents) {
        tracing::info!("{} is as it should be", path.display());
        return Ok(());
    }
    write_atomically(path, contents, mode)?;
    tracing::info!("wrote {}", path.display());
    Ok(())
}

/// The files in the directory and its subdirectories, in the order of Go's `filepath.Walk`: by name, each subdirectory's
/// files in its place. Symbolic links to directories are not followed, because they may form a loop.
///
/// # Errors
/// When a directory cannot be read.
pub fn files_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            files.append(&mut files_below(&path)?);
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// Copies the running program into `directory` under `name`, for another container that mounts the directory: the whole
/// binary or nothing, executable by all.
///
/// # Errors
/// As for [`write_atomically`]; also when the running program cannot be read.
pub fn install(directory: &Path, name: &str) -> Result<(), WriteError> {
    let path = directory.join(name);
    match fs::read("/proc/self/exe") {
        Ok(program) => write_atomically(&path, &program, 0o755),
        Err(source) => Err(WriteError { path, source }),
    }
}

/// Creates a new file beside `path` with a random name. If a file or link of this name exists, it tries another name.
///
/// # Errors
/// When the directory is missing, full or not writable.
pub fn create_beside(path: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let temporary = path.with_file_name(format!(".{name}.{:016x}.tmp", fastrand::u64(..)));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (temporary, file)),
        }
    }
}

/// Removes the temporary files that a killed run left in `directory`, of the files with these names. They may hold a token. No other program
/// may write these files now. A failure is only logged.
pub fn remove_temporaries(directory: &Path, names: &[&str]) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        if names.iter().any(|name| is_temporary_of(name, &file_name.to_string_lossy()))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!("cannot remove {}, left by an earlier run: {error}", entry.path().display());
        }
    }
}

/// Whether `file_name` is a temporary name that [`create_beside`] makes for a file called `name`.
fn is_temporary_of(name: &str, file_name: &str) -> bool {
    let rest = file_name.strip_prefix('.').and_then(|rest| rest.strip_prefix(name));
    let random = rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp"));
    random.is_some_and(|random| random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn fill(mut file: File, contents: &[u8], mode: u32) -> io::Result<()> {
    // The umask has reduced the mode given to open.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_no_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomically(&path, b"old", 0o640).unwrap();
        write_atomically(&path, b"new", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_replaced_and_what_it_names_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "another's").unwrap();
        let path = dir.path().join("file");
        for link in [path.clone(), dir.path().join(format!(".file.{}.tmp", std::process::id()))] {
            std::os::unix::fs::symlink(&elsewhere, link).unwrap();
        }
        write_atomically(&path, b"new", 0o640).unwrap();
        assert!(path.symlink_metadata().unwrap().is_file());
        assert_eq!((fs::read(&path).unwrap(), fs::read(&elsewhere).unwrap()), (b"new".to_vec(), b"another's".to_vec()));
    }

    #[test]
    fn a_temporary_file_is_new_and_its_name_is_random() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("file"), dir.path().join("elsewhere"));
        fs::write(&elsewhere, "another's").unwrap();
        let name = |random: u64| dir.path().join(format!(".file.{random:016x}.tmp"));
        fastrand::seed(7);
        let (first, second) = (fastrand::u64(..), fastrand::u64(..));
        // Somebody has guessed the first name.
        std::os::unix::fs::symlink(&elsewhere, name(first)).unwrap();
        fastrand::seed(7);
        let (temporary, mut file) = create_beside(&path, 0o640).unwrap();
        file.write_all(b"secret").unwrap();
        assert_eq!(temporary, name(second));
        assert_eq!(
            (fs::read(&temporary).unwrap(), fs::read(&elsewhere).unwrap()),
            (b"secret".to_vec(), b"another's".to_vec())
        );
    }

    #[test]
    fn a_temporary_file_is_known_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..20 {
            let (temporary, _) = create_beside(&dir.path().join("token"), 0o600).unwrap();
            let file_name = temporary.file_name().unwrap().to_str().unwrap();
            assert!(is_temporary_of("token", file_name), "{file_name}");
            assert!(!is_temporary_of("tok", file_name) && !is_temporary_of("other", file_name), "{file_name}");
        }
        for other in ["token", ".token.tmp", ".token..tmp", ".token.1.tmp", "token.0123456789abcdef.tmp"] {
            assert!(!is_temporary_of("token", other), "{other}");
        }
    }

    #[test]
    fn a_failed_rename_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomically(&path, b"new", 0o640).unwrap_err();
        assert!(error.to_string().contains("taken"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
