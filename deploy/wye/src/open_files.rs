//! The limit of open files and connections of the process.

/// Raises the limit to the highest that the system allows this user, as servers do, and returns it; `None` where the system
/// does not report it.
pub(crate) fn raise() -> Option<usize> {
    let limit = rlimit::increase_nofile_limit(u64::MAX).ok()?;
    Some(usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_the_highest_allowed() {
        let raised = raise().unwrap();
        let (soft, hard) = rlimit::Resource::NOFILE.get().unwrap();
        assert_eq!((soft, raised as u64), (hard, hard));
    }
}
