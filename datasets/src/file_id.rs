//! The identity of a chunk sequence: the file's bytes, the mapping, and the rule that cuts chunks. Two loads with the same
//! id have the same chunks with the same indices, so a ledger of (id, chunk index) makes a load repeatable.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::csv_source::device_from_file_name;
use crate::error::DatasetError;
use crate::mapping::Mapping;

/// Must change whenever the same file and mapping would give other chunks, or other rows in a chunk. Ledgers store ids that
/// depend on it, so after a change all files are loaded again.
const CHUNKING_VERSION: &str = "wye csv chunks 1";

/// SHA-256 in hex over the chunking version, the meaning of the mapping (not its comments or layout) and the bytes of the
/// (compressed) file. Where the file name is the device, it is included.
///
/// # Errors
/// [`DatasetError::Read`] where the file cannot be read.
pub fn file_id(path: &Path, mapping: &Mapping) -> Result<String, DatasetError> {
    let mut hash = Sha256::new();
    let device = if mapping.device_is_file_name() { device_from_file_name(path) } else { String::new() };
    for part in [CHUNKING_VERSION, mapping.canonical(), &device] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    add_file(&mut hash, path).map_err(|source| DatasetError::Read { path: path.to_path_buf(), source })?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add_file(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            length => hash.update(&buffer[..length]),
        }
    }
}
