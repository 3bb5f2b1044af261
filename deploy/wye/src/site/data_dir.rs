//! The files of the data directory that are not the log and not a table: the lock, the server's name, and addresses for
//! other programs.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wye_runtime::unique;

/// The file that a process locks while it uses the data directory.
const LOCK: &str = "lock";

/// Whether a `wye up` has used the folder as its data directory.
pub(crate) fn is_one(folder: &Path) -> bool {
    folder.join(LOCK).is_file()
}

/// Locks the data directory until the file is closed: only one process may use it.
///
/// # Errors
/// When another process has it, or it cannot be written.
pub(crate) fn lock(data_dir: &Path) -> Result<File> {
    let Some(file) = try_lock(data_dir)? else {
        bail!(
            "another Wye is running on the data directory {}; stop it, or choose another with --data-dir",
            data_dir.display()
        )
    };
    Ok(file)
}

/// The same; `None` when another process has it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn try_lock(data_dir: &Path) -> Result<Option<File>> {
    let path = data_dir.join(LOCK);
    let file = File::create(&path).with_context(|| {
        format!(
            "cannot write to the data directory {}; check its permissions, or choose another with --data-dir",
            data_dir.display()
        )
    })?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The name of this server in the log. It is chosen once for a data directory.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn server_name(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("server-name");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let name = unique::name();
    std::fs::write(&path, &name).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(name)
}

/// Writes a file with an address. Other programs read the whole file or none.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_address(data_dir: &Path, name: &str, address: &str) -> Result<()> {
    let (path, draft) = (data_dir.join(name), data_dir.join(format!("{name}.new")));
    std::fs::write(&draft, format!("{address}\n"))
        .and_then(|()| std::fs::rename(&draft, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file with an address, where there is one.
///
/// # Errors
/// When it cannot be removed.
pub(crate) fn remove_address(data_dir: &Path, name: &str) -> Result<()> {
    let path = data_dir.join(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
