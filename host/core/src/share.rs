//! How much of what all namespaces share one of them may have.

use std::ops::{Div, Sub};

/// What one namespace may have of so many while there are others: three quarters, and at least one of any. However much it asks
/// for, the next that another asks for is there.
pub fn share_of<N>(all: N) -> N
where
    N: Copy + From<u8> + Sub<Output = N> + Div<Output = N>,
{
    all - all / N::from(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_left_to_others_and_one_is_for_whoever_comes() {
        assert_eq!(share_of(256_u64), 192);
        assert_eq!(share_of(5_usize), 4);
        assert_eq!(share_of(1_u32), 1);
        assert_eq!(share_of(0_u32), 0);
        assert_eq!(share_of(u64::MAX), u64::MAX - (u64::MAX >> 2));
    }
}
