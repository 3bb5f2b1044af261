//! The memory of the machine, or of the container that the process is in.

use std::path::Path;

/// The memory in bytes; `None` where the system does not report it.
pub fn machine_memory() -> Option<usize> {
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let container =
        limits.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok()).min();
    let machine = std::fs::read_to_string(Path::new("/proc/meminfo")).ok().and_then(|text| total(&text));
    [container, machine].into_iter().flatten().min()
}

/// The total in the text of `/proc/meminfo`.
fn total(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_bytes() {
        assert_eq!(total("MemTotal:       24689764 kB\nMemFree: 1 kB\n"), Some(24_689_764 << 10));
        assert_eq!(total("nothing"), None);
    }
}
