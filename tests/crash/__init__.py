"""The fault test: trainings killed at random moments and at dangerous places, resumed, compared bit for bit.

`trial` kills and resumes, `child` is a training that kills itself while it writes, `same` compares two run folders.
"""
