"""What ``make bench`` runs: the fast paths against the plain ones. No part of the package."""
