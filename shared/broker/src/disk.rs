//! The file system as the broker uses it. The program runs on [`OsDisk`]; tests run the same code on a disk in memory
//! that fails on demand and loses in a crash what was not synced.
//!
//! It must not know segments or topics.

#[cfg(test)]
pub(crate) mod memory;

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A file system.
///
/// The content of a file is durable after [`DiskFile::sync`]. A name that is created, changed or removed is durable after
/// [`Disk::sync_directory`] of its directory.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates one directory; fails if the name is taken.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// The names of the files and directories in a directory, in no order.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Renames a file within its directory; a file that has the new name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Locks a file against other processes, until the lock is dropped or the process ends. Fails with `WouldBlock`.
    fn lock(&self, path: &Path) -> io::Result<Lock>;
}

/// An open file.
pub(crate) trait DiskFile: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `buffer` with the bytes from `position` on.
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `position`. A failed write may have written a part.
    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;
    /// Truncates the file, or extends it with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Makes content and length durable. After a failure it is unknown what is durable.
    fn sync(&self) -> io::Result<()>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// For reading; it must exist.
    Read,
    /// For reading and writing; it must exist.
    Edit,
    /// For reading and writing; it must not exist.
    New,
    /// For reading and writing; created, or truncated if it exists.
    Empty,
    /// For reading and writing; created if it does not exist.
    Any,
}

/// Keeps a file locked until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Option<File>,
}

/// The file system of the machine.
#[derive(Debug)]
pub(crate) struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match how {
            Open::Read => &mut options,
            Open::Edit => options.write(true),
            Open::New => options.write(true).create_new(true),
            Open::Empty => options.write(true).create(true).truncate(true),
            Open::Any => options.write(true).create(true).truncate(false),
        };
        Ok(Arc::new(options.open(path)?))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Lock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(io::Error::from(io::ErrorKind::WouldBlock)),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, position)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Whether an error is a shortage: the disk is full or there are too few file handles. It can pass, and nothing is wrong
/// with the disk.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;

    use super::memory::MemoryDisk;
    use super::{Disk, Open, OsDisk};

    fn read(disk: &dyn Disk, path: &Path, how: Open) -> Vec<u8> {
        let file = disk.open(path, how).unwrap();
        let mut bytes = vec![0; file.length().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let past_the_end = file.read_exact_at(&mut [0], bytes.len() as u64);
        assert_eq!(past_the_end.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        bytes
    }

    /// What both disks must do alike.
    fn check(disk: &dyn Disk, root: &Path) {
        let directory = root.join("d");
        disk.create_directory(&directory).unwrap();
        assert_eq!(disk.create_directory(&directory).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let (one, two) = (directory.join("one"), directory.join("two"));
        for how in [Open::Read, Open::Edit] {
            assert_eq!(disk.open(&one, how).unwrap_err().kind(), ErrorKind::NotFound);
        }
        let file = disk.open(&one, Open::New).unwrap();
        assert_eq!(disk.open(&one, Open::New).unwrap_err().kind(), ErrorKind::AlreadyExists);
        file.write_all_at(b"0123456789", 0).unwrap();
        file.write_all_at(b"xy", 3).unwrap();
        file.set_length(6).unwrap();
        file.set_length(7).unwrap();
        file.sync().unwrap();
        assert_eq!(read(disk, &one, Open::Read), b"012xy5\0");
        assert_eq!(read(disk, &one, Open::Any), b"012xy5\0");
        disk.open(&two, Open::Any).unwrap();
        disk.rename(&one, &two).unwrap();
        assert_eq!(disk.names(&directory).unwrap(), ["two"]);
        assert_eq!(read(disk, &two, Open::Edit), b"012xy5\0");
        assert_eq!(read(disk, &two, Open::Empty), b"");
        disk.sync_directory(&directory).unwrap();
        disk.remove_file(&two).unwrap();
        assert_eq!(disk.remove_file(&two).unwrap_err().kind(), ErrorKind::NotFound);
        disk.open(&one, Open::New).unwrap();
        disk.remove_directory(&directory).unwrap();
        assert_eq!(disk.remove_directory(&directory).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.names(&directory).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.sync_directory(&directory).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_disk_in_memory_behaves_as_a_real_one() {
        check(&MemoryDisk::default(), Path::new("/"));
        let directory = tempfile::tempdir().unwrap();
        check(&OsDisk, directory.path());
    }
}
