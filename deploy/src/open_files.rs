//! How many files and connections the process may have open.

/// The limit that the system sets (`ulimit -n`); `None` where it sets none or does not say.
pub(crate) fn limit() -> Option<usize> {
    in_limits(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

/// The limit in force in the table that Linux shows of a process's limits.
fn in_limits(table: &str) -> Option<usize> {
    let line = table.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_in_force_is_found() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max processes             95000                95000                processes \n\
                     Max open files            1024                 524288               files     \n";
        assert_eq!(in_limits(table), Some(1024));
        assert_eq!(
            in_limits("Max open files            unlimited            unlimited            files"),
            None
        );
        assert!(limit().is_none_or(|files| files > 0));
    }
}
