//! Small values: names, durations, weights.

use super::field::Field;

/// The name in Consul. A service identity has only lower case letters, digits, `-` and `_`.
pub(super) fn consul_name(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(letter).collect::<String>().trim_matches(['-', '_']).to_owned()
}

/// A duration in milliseconds; none if there is none.
pub(super) fn milliseconds(duration: &Field<'_>) -> Option<u64> {
    if !duration.is_there() {
        return None;
    }
    let (value, unit) = (duration.field("value").number()?, duration.field("unit"));
    match unit.required_text() {
        "ms" => Some(value),
        "s" => Some(value * 1000),
        _ => {
            unit.error("expected s or ms");
            None
        }
    }
}

/// A duration as Consul reads it. In App Mesh, 0 switches a timeout off. In Consul a timeout cannot be switched off.
pub(super) fn timeout(duration: &Field<'_>) -> Option<String> {
    match milliseconds(duration)? {
        0 => {
            duration.lost("0 switches the timeout off. Consul can't: give a long timeout");
            None
        }
        whole if whole % 1000 == 0 => Some(format!("{}s", whole / 1000)),
        parts => Some(format!("{parts}ms")),
    }
}

/// Weights of which the sum is 100, in the same proportions, in steps of 0.01. Consul takes no other sum.
pub(super) fn shares(weights: &[u64]) -> Option<Vec<f64>> {
    let sum: u64 = weights.iter().sum();
    if sum == 0 {
        return None;
    }
    let mut hundredths: Vec<u64> = weights.iter().map(|weight| weight * 10_000 / sum).collect();
    let missing = 10_000 - hundredths.iter().sum::<u64>();
    let mut by_rest: Vec<usize> = (0..weights.len()).collect();
    by_rest.sort_by_key(|index| std::cmp::Reverse(weights[*index] * 10_000 % sum));
    by_rest.into_iter().take(usize::try_from(missing).unwrap_or(0)).for_each(|index| hundredths[index] += 1);
    Some(hundredths.into_iter().map(|hundredth| f64::from(u32::try_from(hundredth).unwrap_or(0)) / 100.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_the_proportions_and_sum_up_to_100() {
        assert_eq!(shares(&[90, 10]).unwrap(), [90.0, 10.0]);
        assert_eq!(shares(&[1, 1, 1]).unwrap(), [33.34, 33.33, 33.33]);
        assert_eq!(shares(&[3, 0]).unwrap(), [100.0, 0.0]);
        assert_eq!(shares(&[1, 6]).unwrap(), [14.29, 85.71]);
        assert_eq!(shares(&[0, 0]), None);
    }

    #[test]
    fn names_have_only_the_letters_of_a_service_identity() {
        assert_eq!(consul_name("Reviews.shop.local"), "reviews-shop-local");
        assert_eq!(consul_name("*.shop.example."), "shop-example");
    }
}
