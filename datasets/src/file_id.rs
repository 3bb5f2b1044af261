//! The name of a chunk sequence: which bytes, read by which mapping, cut by which rule. Two loads with the same name
//! give the same chunks with the same indices, so a ledger of (name, chunk index) makes a load repeatable.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::csv_source::device_from_file_name;
use crate::error::DatasetError;
use crate::mapping::Mapping;

/// Goes up whenever the same file and mapping would give other chunks, or other rows in a chunk. Ledgers keep the
/// name that holds it, so a change here makes files load anew.
const CHUNKING_VERSION: &str = "wye csv chunks 1";

/// SHA-256 in hex over the chunking rule, the mapping's meaning (not its comments or layout) and the file's bytes as
/// they lie on disk. Where the device is the file's name, the name counts too.
///
/// # Errors
/// [`DatasetError::Read`] where the file cannot be read.
pub fn file_id(path: &Path, mapping: &Mapping) -> Result<String, DatasetError> {
    let read_error = |source| DatasetError::Read { path: path.to_path_buf(), source };
    let mut hash = Sha256::new();
    let device = if mapping.device_is_file_name() { device_from_file_name(path) } else { String::new() };
    for part in [CHUNKING_VERSION, mapping.canonical(), &device] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut file = File::open(path).map_err(read_error)?;
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        match file.read(&mut buffer).map_err(read_error)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
