"""Measures this computer, op by op and in pairs, into a machine profile."""
